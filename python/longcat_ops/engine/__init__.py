"""Decoding and what runs around it."""

from .. import _torch  # noqa: F401  (first: it says what to do where torch is missing)
