"""Read and write videos, images and sound (PyAV, Pillow)."""
