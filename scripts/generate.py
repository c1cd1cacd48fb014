"""See `python scripts/generate.py --help`."""

from geoseg_gan.synthesis.settings import generate_command

if __name__ == "__main__":
    generate_command()
