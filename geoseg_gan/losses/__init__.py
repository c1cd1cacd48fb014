"""Objectives and the terms they are made of, in plain torch."""
