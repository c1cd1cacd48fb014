"""See `python scripts/export.py --help`."""

from geoseg_gan.export.settings import export_command

if __name__ == "__main__":
    export_command()
