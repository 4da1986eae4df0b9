"""Methods that need numbers to predict."""
