"""Implementations of the commands `export`, `sample` and `inspect`, which work on files."""
