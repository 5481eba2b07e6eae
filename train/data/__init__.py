"""From videos to datasets of latents, and from prompts to stored conditions."""
