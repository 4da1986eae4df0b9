"""Is it gone: one file per question, and the suite that asks them."""
