"""Methods that need classes."""
