"""Figures of the results, a file an experiment. They return figures of Matplotlib."""
