"""Paint aerial images from semantic masks, and measure whether they improve a segmenter."""
