"""Fixtures of every test here: the host emulator's library, one torch thread, a known schedule."""

from support.emulated_kernels import library, one_thread, schedule  # noqa: F401  (fixtures that every test uses)
