"""The headless trainer, used through the `magicdistill` command."""
