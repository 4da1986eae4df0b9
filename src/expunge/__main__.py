"""``python -m expunge`` is the command line."""

from __future__ import annotations

from expunge.cli.app import main

if __name__ == "__main__":
    main()
