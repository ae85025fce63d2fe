"""Every test here runs kernels in the host emulator: its library, one thread of torch, a known schedule."""

from support.emulated_kernels import library, one_thread, schedule  # noqa: F401  (fixtures that every test uses)
