"""Measurements of whatever machine they are run on: `python -m benchmarks`."""
