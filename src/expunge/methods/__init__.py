"""How to forget: one file per published method."""
