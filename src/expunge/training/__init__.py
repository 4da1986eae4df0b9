"""One training loop for every gradient method."""
