"""A training run, from the first checks to the last checkpoint."""
