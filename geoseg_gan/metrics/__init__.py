"""How good predictions and pictures are, in plain torch and NumPy."""
