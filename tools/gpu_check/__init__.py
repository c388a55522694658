"""`tools/gpu_check.sh`: what only a GPU shows, as one table."""
