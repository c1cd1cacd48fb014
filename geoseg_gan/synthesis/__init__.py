"""From a trained generator to image-mask pairs on disk."""
