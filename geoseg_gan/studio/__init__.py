"""A page in the browser: images from masks that one draws, and pair folders to look through."""
