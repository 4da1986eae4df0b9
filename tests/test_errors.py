"""Problems are collected, and what is not bad input is not caught."""

from __future__ import annotations

import pytest

from expunge.errors import BadInput, Diverged, Problem, collected, in_our_words, tried

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


def test_what_pydantic_says_is_put_in_our_words() -> None:
    assert in_our_words("Value error, Give two") == "give two"
    assert in_our_words("Input should be a valid tuple") == "input should be a list, such as [1, 2]"
    assert in_our_words("Input should be a valid dictionary") == "input should be keys with values"
