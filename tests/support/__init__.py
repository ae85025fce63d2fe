"""Oracles, fixtures and builders that several test files share."""
