"""What differs between model families: latent geometry, conditioning, defaults. One module a family."""
