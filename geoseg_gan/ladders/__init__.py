"""Ladders of recipes: stored results, the table made of them, and the processes that run."""
