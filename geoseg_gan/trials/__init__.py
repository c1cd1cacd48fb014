"""Trials: whether synthetic pairs help a segmenter, with error bars."""
