"""Decoding and what runs around it."""
