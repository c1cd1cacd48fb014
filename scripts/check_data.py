"""See `python scripts/check_data.py --help`."""

from geoseg_gan.data.settings import check_data_command

if __name__ == "__main__":
    check_data_command()
