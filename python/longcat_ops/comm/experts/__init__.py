"""The backends of expert parallelism between ranks."""
