"""Generators, discriminators, segmenters and pretrained networks, in plain torch."""
