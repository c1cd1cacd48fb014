"""See `python scripts/check_data.py --help`."""

from geoseg_gan.cli import check_data

if __name__ == "__main__":
    check_data()
