"""See `python scripts/predict.py --help`."""

from geoseg_gan.cli import predict

if __name__ == "__main__":
    predict()
