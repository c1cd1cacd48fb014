"""See `python scripts/evaluate.py --help`."""

from geoseg_gan.evaluate import main

if __name__ == "__main__":
    main()
