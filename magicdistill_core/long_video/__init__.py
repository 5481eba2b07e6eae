"""Long videos: segments that continue each other, each kept on disk, joined into one file as they are made."""
