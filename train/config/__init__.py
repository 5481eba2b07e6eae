"""The configuration of a run: every field has a type, a description and checks. See docs/settings.md."""
