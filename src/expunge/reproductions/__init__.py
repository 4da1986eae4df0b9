"""One file per paper: its central claim, tried at small scale, with what was measured."""
