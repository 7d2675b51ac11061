"""Experiments, one a file. Each is a function that returns its numbers as a dataclass."""
