"""Measures of pocket samples: what a frame shows, whether faces stay intact, and how far samples are from data."""
