"""What holds for every reproduction: it says what it is, and its judgement can come out either way."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from expunge.reproductions.base import Reproduction, Result
from expunge.reproductions.runner import REPRODUCTIONS, reproduce

ALL = REPRODUCTIONS.classes()
COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "results" / "reproductions"
each = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.id)


@each
def test_it_says_what_it_is(kind: type[Reproduction]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.id)
    assert all(len(text) > 20 for text in (kind.title, kind.paper, kind.claim))
    assert re.search(r"(19|20)\d\d", kind.paper), "the paper has a year"
    assert len(kind.seeds) >= 3
    assert len(set(kind.seeds)) == len(kind.seeds)
    assert kind.__doc__, "how it is tried"


@each
def test_every_check_can_come_out_both_ways(kind: type[Reproduction]) -> None:
    """Made-up numbers: those that were measured, some of them replaced, must flip every check sooner or later."""
    file = COMMITTED / f"{kind.id}.json"
    if not file.is_file():
        pytest.skip("no committed result yet, so the names of its numbers are not known")
    measured = list(json.loads(file.read_text(encoding="utf-8"))["runs"].values())
    dice, judge = random.Random(0), kind().judge
    seen: list[set[bool]] = [{check.holds} for check in judge(measured)]
    for _ in range(20_000):
        factors = {key: 10 ** dice.uniform(-2, 2) for key in measured[0] if dice.random() < 0.5}
        shifts = {key: dice.uniform(-1, 1) for key in factors if dice.random() < 0.5}
        made_up = [
            {key: value * factors.get(key, 1) + shifts.get(key, 0) for key, value in run.items()} for run in measured
        ]
        for outcomes, check in zip(seen, judge(made_up), strict=True):
            assert check.claim
            assert check.detail
            outcomes.add(check.holds)
        if all(len(outcomes) == 2 for outcomes in seen):
            break
    stuck = [check.claim for outcomes, check in zip(seen, judge(measured), strict=True) if len(outcomes) < 2]
    assert not stuck, "no numbers make these come out the other way"


@pytest.mark.slow
@each
def test_the_quick_version_gives_the_same_numbers_twice(kind: type[Reproduction], tmp_path: Path) -> None:
    one = reproduce(kind(), seeds=(0,), quick=True, out=tmp_path / "one")
    other = reproduce(kind(), seeds=(0,), quick=True, out=tmp_path / "other")
    assert one.quick
    assert one.checks
    assert _without_times(one) == _without_times(other)


def _without_times(result: Result) -> dict[int, dict[str, float]]:
    """What a seed decides; seconds are measured, and named so."""
    return {
        seed: {key: value for key, value in numbers.items() if not key.endswith("_seconds")}
        for seed, numbers in result.runs.items()
    }
