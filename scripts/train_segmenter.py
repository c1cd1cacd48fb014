"""See `python scripts/train_segmenter.py --help`."""

from geoseg_gan.training.settings import train_segmenter_command

if __name__ == "__main__":
    train_segmenter_command()
