"""See `python scripts/benchmark.py --help`."""

from geoseg_gan.benchmark import main

if __name__ == "__main__":
    main()
