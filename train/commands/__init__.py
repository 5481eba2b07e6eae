"""The commands of `magicdistill`, by subject. Each imports its dependencies only when it runs."""
