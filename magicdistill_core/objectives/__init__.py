"""The losses as pure functions of tensors and velocity callables, without optimizer, engine or I/O."""
