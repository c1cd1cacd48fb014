"""See `python scripts/train_segmenter.py --help`."""

from geoseg_gan.cli import train_segmenter

if __name__ == "__main__":
    train_segmenter()
