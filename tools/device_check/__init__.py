"""The parts of tools/gpu_check.py and tools/device_bundle.py."""
