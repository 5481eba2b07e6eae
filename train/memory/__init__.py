"""How much GPU memory a training takes, computed before it starts."""
