"""Problems are collected, and what is not bad input is not caught."""

from __future__ import annotations

import pytest

from expunge.errors import BadInput, Diverged, Problem, collected, tried

ONE, OTHER = Problem("a", "is wrong", "change it"), Problem("b", "is wrong too", "leave it out")


def fail(error: Exception) -> int:
    raise error


def test_every_problem_is_collected_and_the_work_goes_on() -> None:
    problems: list[Problem] = [ONE]
    with collected(problems):
        fail(BadInput(OTHER))
    assert tried(problems, "c", lambda: fail(BadInput("cannot be read"))) is None
    assert problems == [ONE, OTHER, Problem("c", "cannot be read", "change it")]
    assert tried(problems, "c", lambda: 3) == 3
    assert len(problems) == 3


def test_other_errors_pass() -> None:
    problems: list[Problem] = []
    with pytest.raises(Diverged), collected(problems):
        fail(Diverged("at step 3"))
    assert problems == []
