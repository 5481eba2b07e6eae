"""Videos, pictures and sound: files to tensors and back (PyAV, Pillow)."""
