"""The check of a data folder before training: what it holds, what is wrong, how to read it."""
