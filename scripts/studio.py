"""See `python scripts/studio.py --help`."""

from geoseg_gan.studio.settings import studio_command

if __name__ == "__main__":
    studio_command()
