from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from expunge.audits.base import Evidence
from expunge.verdict.calibration import World, pairs_told_apart
from expunge.verdict.pairs import tell_apart
from expunge.verdict.settings import VerdictSettings

RUNS = 200
# three standard errors above alpha at 200 runs
LIMIT = RUNS * (0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5)


def evidence(
    level: float, *, oracles: tuple[float, ...] = (0.0, 0.02), n: int = 24, statistic: str = "nll"
) -> Evidence:
    """Values around a level where the original is at 1; two models of a level differ a little on every example."""

    def around(mean: float, shift: int) -> dict[str, float]:
        return {f"x{i:02d}": mean + 0.02 * ((i * 7 + shift) % 5 - 2) for i in range(n)}

    values = {"unlearned": around(level, 1), "original": around(1.0, 2)}
    values |= {"oracle" if k == 0 else f"oracle-{k + 1}": around(at, 3 + k) for k, at in enumerate(oracles)}
    return Evidence(statistic, "forget", values, audit="probability")


def test_the_difference_margin_and_p_are_those_of_the_paired_test() -> None:
    one, other = evidence(0.8), evidence(0.3)
    (test,) = tell_apart({"a": [one], "b": [other]})
    a, b = (np.array(list(e.values["unlearned"].values())) for e in (one, other))
    assert test.means == pytest.approx((a.mean(), b.mean()))
    assert test.difference == pytest.approx((a - b).mean())
    assert (test.n, test.units, test.apart) == (24, "examples", True)
    assert test.margin == pytest.approx(0.25 * (1.0 - 0.01), abs=0.01)
    assert test.low is not None
    assert test.low < test.difference < (test.high or 0)


def test_a_difference_within_the_margin_tells_nothing_apart_however_sure() -> None:
    (test,) = tell_apart({"a": [evidence(0.6)], "b": [evidence(0.4)]})
    assert (test.low or 0) > 0
    assert not test.apart


def test_seeds_that_differ_as_much_explain_it() -> None:
    quiet, loud = (
        tell_apart({name: [evidence(level, oracles=oracles)] for name, level in (("a", 0.7), ("b", 0.2))})[0]
        for oracles in ((0.0, 0.02), (-0.25, 0.25))
    )
    assert quiet.apart
    assert not loud.apart
    assert loud.margin > quiet.margin


def test_every_further_test_of_a_pair_costs_the_others_and_further_models_nothing() -> None:
    alone = {"a": [evidence(0.55, n=9)], "b": [evidence(0.2, n=9)]}
    more = {
        name: [*found, *(evidence(0.3, n=9, statistic=f"more-{k}") for k in range(9))] for name, found in alone.items()
    }
    (before,) = tell_apart(alone)
    after = next(test for test in tell_apart(more) if test.statistic == "nll")
    assert after.p == pytest.approx(min(1.0, 10 * before.p))
    third = tell_apart(alone | {"c": [evidence(0.9, n=9)]})
    assert next(test for test in third if (test.first, test.second) == ("a", "b")) == before


def test_what_cannot_be_compared_is_not_tested() -> None:
    one = evidence(0.8)
    fewer = replace(one, values={name: dict(list(own.items())[:20]) for name, own in one.values.items()})
    flat = evidence(0.8, oracles=(1.0,))
    kept = replace(one, about="retain")
    for other in (fewer, flat, kept, replace(one, statistic="other")):
        assert tell_apart({"a": [one], "b": [other]}) == []
    assert tell_apart({"a": [one]}) == []


def test_pairs_come_in_the_order_given_and_neither_side_is_the_first() -> None:
    found = {name: [evidence(level)] for name, level in (("z", 0.9), ("a", 0.1), ("m", 0.5))}
    tests = tell_apart(found)
    assert [(test.first, test.second) for test in tests] == [("z", "a"), ("z", "m"), ("a", "m")]
    turned = {(test.second, test.first): test for test in tell_apart(dict(reversed(found.items())))}
    for test in tests:
        assert turned[test.first, test.second].p == pytest.approx(test.p)
        assert turned[test.first, test.second].difference == pytest.approx(-test.difference)


def test_settings_of_the_verdict_hold() -> None:
    found = {"a": [evidence(0.6)], "b": [evidence(0.4)]}
    assert tell_apart(found, VerdictSettings(margin_fraction=0.1))[0].apart


@pytest.mark.parametrize("world", [
    World(statistics=3, seed_sd=0.06, holdout=False), World(statistics=3, seed_sd=0.05, oracles=0),
    World(statistics=3, seed_sd=0.08, oracles=2, holdout=False),
    World(statistics=3, seed_sd=0.05, examples=60, group_size=4, oracles=2, holdout=False),
], ids=["one oracle", "holdout", "two oracles", "groups"])  # fmt: skip
def test_two_retrained_models_are_rarely_told_apart(world: World) -> None:
    assert pairs_told_apart(RUNS, world) <= LIMIT
    assert pairs_told_apart(RUNS // 4, world, first=0.75) >= 0.9 * RUNS // 4
