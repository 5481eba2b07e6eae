"""The commands that work on files: export, sample, inspect."""
