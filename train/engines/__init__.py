"""DeepSpeed engines around the networks of a training, and the state that they hold."""
