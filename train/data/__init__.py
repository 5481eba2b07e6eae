"""Data preparation: videos become datasets of latents, prompts become files of text conditioning.

A *null prompt* is the text conditioning of the empty prompt. It is also the form in which any encoded prompt is stored.
"""
