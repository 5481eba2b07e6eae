"""Data preparation: videos become datasets of latents, prompts become files of text conditioning."""
