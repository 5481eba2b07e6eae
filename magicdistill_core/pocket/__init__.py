"""The pocket model: a procedural renderer of talking portraits, and small networks trained on these portraits."""
