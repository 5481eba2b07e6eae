"""The result as files: JSON, Markdown, plots and a page."""
