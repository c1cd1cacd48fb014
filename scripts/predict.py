"""See `python scripts/predict.py --help`."""

from geoseg_gan.evaluation.settings import predict_command

if __name__ == "__main__":
    predict_command()
