"""The losses, as pure functions of tensors and velocity callables: no optimizer, no engine, no I/O."""
