"""See `python scripts/generate.py --help`."""

from geoseg_gan.generate import main

if __name__ == "__main__":
    main()
