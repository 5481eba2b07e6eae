"""The pocket model: a procedural world of talking portraits and the tiny networks trained on it."""
