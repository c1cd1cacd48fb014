"""See `python scripts/trial.py --help`."""

from geoseg_gan.trial import main

if __name__ == "__main__":
    main()
