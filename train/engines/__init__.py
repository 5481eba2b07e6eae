"""The DeepSpeed engines of a training and their saved state."""
