"""Providers of symmetric memory: torch's (`torch_symm`), and our own over the CUDA driver (`vmm`)."""
