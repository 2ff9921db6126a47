"""Processes, files, the console."""
