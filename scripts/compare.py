"""See `python scripts/compare.py --help`."""

from geoseg_gan.training.settings import compare_command

if __name__ == "__main__":
    compare_command()
