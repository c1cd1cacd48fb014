"""See `python scripts/trial.py --help`."""

from geoseg_gan.trials.settings import trial_command

if __name__ == "__main__":
    trial_command()
