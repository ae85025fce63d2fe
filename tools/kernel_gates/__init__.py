"""The gates of tools/check_kernels.py: what must hold of compiled kernels and can be seen without a GPU."""
