"""See `python scripts/evaluate.py --help`."""

from geoseg_gan.cli import evaluate

if __name__ == "__main__":
    evaluate()
