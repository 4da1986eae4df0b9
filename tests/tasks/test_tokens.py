"""What can be read off the scores of one answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expunge.tasks.tokens import TokenScores


def scores(log_prob: list[float], ends: bool = True) -> TokenScores:
    column = np.array(log_prob)
    return TokenScores(column, column, column, column > -1, ends, "text")


def test_mean_and_length_normalised_probability() -> None:
    found = scores([math.log(0.5), math.log(0.125)])
    assert len(found) == 2
    assert found.nll == pytest.approx(2 * math.log(2))
    assert found.probability == pytest.approx(0.25)


def test_content_leaves_out_the_end_that_was_appended() -> None:
    assert scores([-1.0, -2.0]).content == slice(0, 1)
    assert scores([-1.0, -2.0], ends=False).content == slice(0, 2)


def test_no_token_is_no_number() -> None:
    assert math.isnan(scores([]).nll)
    assert math.isnan(scores([]).probability)
