"""Monitoring of a run: metrics, validation samples, the collapse guard and the report."""
