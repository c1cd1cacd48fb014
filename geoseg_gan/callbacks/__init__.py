"""What a training run shows and leaves behind."""
