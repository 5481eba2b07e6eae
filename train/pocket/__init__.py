"""Build and measure the pocket model: portraits, video autoencoder, 28-step teacher, demo, comparison of methods."""
