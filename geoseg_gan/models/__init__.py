"""Generators and discriminators in plain torch, found by name."""
