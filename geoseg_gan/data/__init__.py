"""From files on disk to batches: palette, pairs, jitter, loading, tiling and the demo world."""
