"""Distances between sets of samples, and what is measured of clips."""
