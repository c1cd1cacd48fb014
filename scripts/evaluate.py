"""See `python scripts/evaluate.py --help`."""

from geoseg_gan.evaluation.settings import evaluate_command

if __name__ == "__main__":
    evaluate_command()
