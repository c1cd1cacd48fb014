"""Losses of GANs and segmenters, in plain torch."""
