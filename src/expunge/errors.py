"""Errors that a user can act on, apart from bugs.

Every error carries the process exit code that the command line uses: 2 for input that the user can correct,
1 for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")


class ExpungeError(Exception):
    """Anything that Expunge reports to a user without a traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with what the user gave.

    Attributes:
        where: the place: a file, a line of it, a column, an option.
        what: what is wrong there, with the value found.
        fix: what to do about it.
        severity: an ``error`` stops the run; a ``warning`` is printed and the run goes on.
    """

    where: str
    what: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.where}: {self.what} -> {self.fix}"


class BadInput(ExpungeError, ValueError):
    """Input that cannot be used. Carries every problem found, not only the first.

    Args:
        problems: one message, one ``Problem`` or all of them.
    """

    exit_code = 2

    def __init__(self, problems: str | Problem | Sequence[Problem]):
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: list[Problem] = [] if isinstance(problems, str) else list(problems)
        super().__init__(problems if isinstance(problems, str) else "\n".join(str(p) for p in self.problems))


@contextmanager
def collected(problems: list[Problem], where: str = "input") -> Iterator[None]:
    """Go on after bad input, with its problems added to a list, so that all of them are reported at once.

    Args:
        problems: takes them.
        where: the place of a message that names none.
    """
    try:
        yield
    except BadInput as error:
        problems += error.problems or [Problem(where, str(error), "change it")]


def tried(problems: list[Problem], where: str, call: Callable[[], T]) -> T | None:
    """Return what a call gives, or None where its input is bad; see ``collected``."""
    with collected(problems, where):
        return call()
    return None


def in_our_words(message: str) -> str:
    """Return what pydantic says of a value, without what only its own users know."""
    message = message.removeprefix("Value error, ").replace("a valid tuple", "a list, such as [1, 2]")
    message = message.replace("a valid dictionary", "keys with values")
    return message[:1].lower() + message[1:]


class UnsupportedModel(BadInput):
    """A model that this operation cannot work with, and what it looked for."""


class MissingExtra(BadInput):
    """An optional dependency is needed and is not installed."""


class Diverged(ExpungeError, RuntimeError):
    """Training produced NaN/inf or collapsed; the last good checkpoint was kept."""


class BrokenScores(ExpungeError):
    """A model gave NaN or infinite scores, so nothing can be said about what it knows."""


class NotRemoved(ExpungeError):
    """``--require removed`` was asked for and the verdict is something else."""

    exit_code = 3
