"""How a job tells whoever is watching what it does."""

from __future__ import annotations

from collections.abc import Mapping

from expunge.errors import Problem


class Progress:
    """Hears what a job does and says nothing; subclass it to show it."""

    def stage(self, title: str) -> None:
        """Begin a part of the job, such as "loading runs/model"."""

    def step(self, done: int, total: int, values: Mapping[str, float] | str = "") -> None:
        """Tell how far the part is, with numbers or words on the last step."""

    def warn(self, problem: Problem) -> None:
        """Tell of something that does not stop the job."""

    def say(self, text: str) -> None:
        """Tell one thing in a line."""
