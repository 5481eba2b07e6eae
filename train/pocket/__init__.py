"""Makes the pocket model: renders portraits, trains the video autoencoder, trains the 28-step teacher."""
