"""Which examples of a training set to forget: drawn, named, or chosen because they are hard or easy to forget."""
