"""The headless trainer: everything behind the `magicdistill` command."""
