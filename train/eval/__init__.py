"""Measuring folders of videos: true networks by path and sha256, one result per video, tables and pages."""
