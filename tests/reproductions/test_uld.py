"""ULD's claim: what the judge makes of numbers, and that a small run gives all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.reproductions.runner import reproduce
from expunge.reproductions.uld import STRENGTHS, ULDReproduction, at_strength
from expunge.training.probe import ProbePoint

HELD = {
    "kept_before": 0.8,
    "known_before": 0.8,
    "kept_after_npo": 0.5,
    "npo_steps_to_level": 400.0,
    "kept_after_uld": 0.78,
    "kept_after_uld_plain_data": 0.7,
    "uld_strength": 0.75,
    "uld_steps": 80.0,
    "npo_step_seconds": 0.4,
    "uld_step_seconds": 0.1,
}


def verdicts(**changes: float) -> list[bool]:
    runs = [HELD, {**HELD, **changes}]
    return [check.holds for check in ULDReproduction().judge(runs)]


def test_numbers_as_in_the_paper_hold_and_each_other_one_is_seen() -> None:
    assert verdicts() == [True] * 5
    assert verdicts(kept_after_uld=0.74) == [False, True, True, True, True]
    assert verdicts(kept_after_npo=0.79) == [True, False, True, True, True]
    assert verdicts(uld_step_seconds=0.14) == [True, True, False, True, True]
    assert verdicts(npo_steps_to_level=30.0) == [True, True, True, False, True]
    assert verdicts(kept_after_uld_plain_data=0.79) == [True, True, True, True, False]


def test_a_seed_that_never_forgets_is_no_success() -> None:
    lacking = {key: value for key, value in HELD.items() if key != "kept_after_uld"}
    checks = ULDReproduction().judge([HELD, lacking])
    assert not checks[0].holds
    assert "1 of 2 seeds did not reach the level" in checks[0].detail


def test_the_strength_is_the_first_below_the_level() -> None:
    points = [ProbePoint(k, forget_probability=0.9 - 0.1 * k) for k in range(len(STRENGTHS) + 1)]
    assert at_strength(points, 0.65) == STRENGTHS[2]


@pytest.mark.slow
def test_the_quick_version_measures_everything(tmp_path: Path) -> None:
    result = reproduce("uld", seeds=(0,), quick=True, out=tmp_path)
    assert set(HELD) <= set(result.runs[0])
    assert result.runs[0]["kept_after_uld"] > result.runs[0]["kept_after_npo"]
