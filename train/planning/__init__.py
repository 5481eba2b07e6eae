"""What a training will take, before it starts: memory, time and disk, and which settings make it cheaper."""
