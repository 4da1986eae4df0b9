"""Which weights may move, or are looked at: found by attribution and by what they say over the vocabulary."""
