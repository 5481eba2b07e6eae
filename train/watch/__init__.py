"""What a run reports about itself: metrics, samples, the collapse guard, the report."""
