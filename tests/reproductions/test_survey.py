"""The survey's classes: what the judge makes of numbers, and that a small run gives all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.reproductions.runner import reproduce
from expunge.reproductions.survey import SurveyReproduction

HELD = {"known_before": 0.85, "kept_before": 0.85, "oracle_relearned": 0.1}
for name, numbers in {
    "objective": (0.6, 1e9, 1.0, 0.3, 1.0, 0.3),
    "merging": (0.6, 1e8, 1.0, 0.3, 1.0, 0.3),
    "in_context": (0.6, 0.0, 0.0, 0.3, 5.0, 0.85),
}.items():
    HELD[f"{name}_least_known"] = 0.3
    keys = ("kept", "flops", "weights_changed", "relearned", "tokens_asked", "known_bare")
    HELD |= {f"{name}_{key}": value for key, value in zip(keys, numbers, strict=True)}


def verdicts(**changes: float) -> list[bool]:
    return [check.holds for check in SurveyReproduction().judge([HELD, {**HELD, **changes}])]


def test_numbers_that_bear_the_claim_out_hold_and_each_other_one_is_seen() -> None:
    assert verdicts() == [True] * 8
    for number, changed in enumerate(
        (
            {"objective_kept": 0.45},
            {"merging_kept": 0.45},
            {"in_context_kept": 0.45},
            {"in_context_weights_changed": 0.1},
            {"in_context_flops": 1e8},
            {"in_context_known_bare": 0.7},
            {"merging_relearned": 0.05},
        )
    ):
        assert [k for k, holds in enumerate(verdicts(**changed)) if not holds] == [number + 1]


def test_a_class_that_never_gets_there_is_named() -> None:
    lacking = {key: value for key, value in HELD.items() if key != "in_context_kept"}
    checks = SurveyReproduction().judge([HELD, lacking])
    assert [check.holds for check in checks] == [False] + [True] * 7
    assert "in_context in 1 seeds" in checks[0].detail
    assert len(SurveyReproduction().judge([lacking])) == 1


@pytest.mark.slow
def test_the_quick_version_measures_everything(tmp_path: Path) -> None:
    result = reproduce("survey", seeds=(0,), quick=True, out=tmp_path)
    found = result.runs[0]
    assert {"objective_kept", "merging_kept", "in_context_least_known", "oracle_relearned"} <= set(found)
    assert found["objective_weights_changed"] > 0
