"""The configuration of a run: every field typed, explained and checked."""
