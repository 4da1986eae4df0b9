from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.recovery import Recovery, area_under, batches, excess, first_at, split_halves
from expunge.errors import BrokenScores
from expunge.tasks.tokens import TokenScores


@given(
    st.lists(st.integers(0, 6), min_size=2, max_size=40),
    st.sampled_from(["auto", "groups", "examples"]),
    st.integers(0, 9),
)
def test_halves_are_halves(group_of: list[int], split: str, seed: int) -> None:
    ids = [f"e{k}" for k in range(len(group_of))]
    groups = {i: f"g{g}" for i, g in zip(ids, group_of, strict=True)}
    trained, tested = split_halves(ids, groups, split, seed)  # type: ignore[arg-type]
    assert sorted([*trained, *tested]) == sorted(ids)
    assert (trained, tested) == split_halves(ids[::-1], groups, split, seed)  # type: ignore[arg-type]
    whole = split == "groups" or (split == "auto" and len(set(group_of)) >= 4)
    if whole:
        assert not {groups[i] for i in trained} & {groups[i] for i in tested}
    else:
        assert abs(len(trained) - len(tested)) <= 1


def test_without_groups_examples_are_split() -> None:
    trained, tested = split_halves([f"e{k}" for k in range(10)], {}, "auto", 0)
    assert len(trained) == len(tested) == 5


def test_batches_show_every_example_once_per_round() -> None:
    order = [i for batch in islice(batches(["a", "b", "c", "d", "e"], 2, 0), 5) for i in batch]
    assert sorted(order[:5]) == sorted(order[5:]) == ["a", "b", "c", "d", "e"]


def test_area_by_hand() -> None:
    """Over log2(1 + step), steps 0, 1, 3 are at 0, 1, 2. Values 0, 1, 1: (0.5 + 1) / 2 = 0.75; a constant is itself."""
    assert area_under([(0, 0.0), (1, 1.0), (3, 1.0)]) == pytest.approx(0.75)
    assert area_under([(0, 0.3), (5, 0.3), (32, 0.3)]) == pytest.approx(0.3)


def test_first_budget_by_hand() -> None:
    curve = [(0, 0.1), (2, 0.5), (4, 0.9)]
    assert first_at(curve, 0.5) == 2
    assert first_at(curve, 0.05) == 0
    assert first_at(curve, 0.95) is None


def scores(nll: float) -> TokenScores:
    log = np.array([-nll, -nll])
    return TokenScores(log, log, np.ones(2), np.ones(2, dtype=bool), True, "a")


def recovered(curves: dict[str, list[float]], budgets: tuple[int, ...] = (0, 1, 3)) -> Recovery:
    found = Recovery("unlearned")
    for k, budget in enumerate(budgets):
        found.add("tested", budget, {i: scores(-math.log(curve[k])) for i, curve in curves.items()})
    return found


def test_readings_of_a_curve_by_hand() -> None:
    found = recovered({"a": [0.1, 0.8, 0.4], "b": [0.2, 0.2, 0.2]})
    assert [budget for budget, _ in found.curve("tested")] == [0, 1, 3]
    assert [value for _, value in found.curve("tested")] == pytest.approx([0.15, 0.5, 0.3])
    assert found.gain("tested", "last") == pytest.approx({"a": 0.3, "b": 0.0})
    assert found.gain("tested", "best") == pytest.approx({"a": 0.7, "b": 0.0})
    # budgets 0, 1, 3 lie at 0, 1, 2 of log2(1 + budget): (0.45 + 0.6) / 2
    assert found.area("tested") == pytest.approx({"a": 0.525, "b": 0.2})
    assert found.curve("control") == []
    assert found.ids("shown") == []


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=6))
def test_the_mean_area_is_the_area_of_the_mean(curves: list[list[float]]) -> None:
    found = recovered({f"e{k}": curve for k, curve in enumerate(curves)})
    assert np.mean(list(found.area("tested").values())) == pytest.approx(area_under(found.curve("tested")))


def test_excess_is_over_the_mean_of_the_oracles() -> None:
    assert excess({"a": 0.5, "b": 0.1}, [{"a": 0.1, "b": 0.1}, {"a": 0.3, "b": 0.2}]) == pytest.approx(
        {"a": 0.3, "b": -0.05}
    )


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_model_is_no_forgetting(broken: float) -> None:
    with pytest.raises(BrokenScores, match="1 of 2 examples, such as b"):
        Recovery("unlearned").add("tested", 2, {"a": scores(1.0), "b": scores(broken)})
