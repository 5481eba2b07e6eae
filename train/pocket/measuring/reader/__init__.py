"""The reader: a small network that reads one frame of a pocket portrait, its training, and its errors."""
