"""Measures: of sets of feature vectors, of clips and of faces, and intervals of means."""
