"""What tools/gpu_check.py and tools/device_bundle.py are made of."""
