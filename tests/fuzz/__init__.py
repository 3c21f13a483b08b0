"""Fuzzing of all that reads bytes from strangers: `python -m tests.fuzz --help`."""
