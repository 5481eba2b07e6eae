"""Measure speed and memory on this machine: `python -m benchmarks`."""
