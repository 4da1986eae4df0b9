"""Which points are not beaten, and the plot of them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from expunge.reports.pareto import Candidate, draw_pareto, pareto_front

numbers = st.floats(-5, 5, allow_nan=False)


def test_the_front_of_four_points() -> None:
    assert pareto_front([(0, 3), (1, 2), (1, 1), (2, 0)]) == [0, 1, 3]
    assert pareto_front([(1, 1), (1, 1)]) == [0, 1], "neither of two equal points beats the other"
    assert pareto_front([(math.nan, 9), (0, 0)]) == [1]
    assert pareto_front([]) == []


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20))
def test_everything_else_is_beaten_and_nothing_in_front_is(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    assert front

    def beaten(k: int) -> bool:
        return any(p[0] >= points[k][0] and p[1] >= points[k][1] and p != points[k] for p in points)

    assert [k for k in range(len(points)) if not beaten(k)] == front


def test_the_plot_names_every_candidate_and_is_self_contained() -> None:
    candidates = [Candidate("npo", 3.0, 0.9, [(2.9, 0.9), (3.1, 0.9)]), Candidate("<b>", 2.0, 0.5)]
    drawing = draw_pareto(candidates, ["npo"], "NLL", "Probability", 3.0, [Candidate("original", 0.0, 1.0)])
    for part in ("npo (not beaten)", "&lt;b&gt;", "original", "NLL", "Probability"):
        assert part in drawing.svg
    assert "http" not in drawing.svg.replace("http://www.w3.org", "")
    assert drawing.note == ""


def test_what_cannot_be_drawn_is_counted() -> None:
    drawing = draw_pareto([Candidate("a", math.inf, 1.0), Candidate("b", 1.0, 1.0)], [], "x", "y")
    assert "1" in drawing.note
