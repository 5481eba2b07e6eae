"""Distances between sets of feature vectors, and features of clips."""
