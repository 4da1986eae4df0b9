"""The quick version runs through, and the judgement on made-up numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.reproductions.base import Workbench
from expunge.reproductions.worst_case import METHODS, RELABELLED, SETS, TRAINED, WorstCaseReproduction


def numbers(**change: float) -> dict[str, float]:
    """What a seed measures if everything is as the paper says."""
    level = {"random": 20.0, "worst": 0.0, "unrolled": 0.0, "easiest": 80.0, "margin": 0.0}
    made = {f"retrain_{key}_{name}": level[name] for key in ("ua", "mia", "ra") for name in SETS}
    made |= {f"retrain_ta_{name}": 72.0 for name in SETS} | {f"gap_other_seed_{name}": 1.0 for name in SETS}
    for name, factor in (("random", 1.0), ("worst", 0.2), ("easiest", 2.0)):
        made |= {f"gap_{m}_{name}": 10 * factor for m in TRAINED}
        made |= {f"gap_{m}_{name}": 10 / factor for m in RELABELLED}
        made |= {f"ua_{m}_{name}": 1.0 for m in METHODS}
    made |= {"transfer_ua_random": 22.0, "transfer_ua_worst": 0.5}
    made |= {"overlap_of_forms": 0.8, "overlap_with_margin": 0.7, "kept_by_reference": 1.0}
    assert set(change) <= set(made)
    return {**made, **change}


def held(*runs: dict[str, float]) -> list[bool]:
    return [check.holds for check in WorstCaseReproduction().judge(runs)]


def test_what_the_paper_says_holds() -> None:
    assert held(numbers(), numbers()) == [True] * 7


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"retrain_ua_worst": 21.0}, 0),
        ({"retrain_mia_worst": 21.0}, 0),
        ({"retrain_ta_worst": 60.0}, 1),
        ({"retrain_ua_unrolled": 21.0}, 2),
        ({"retrain_ua_easiest": 19.0}, 3),
        ({"gap_scrub_worst": 40.0}, 4),
        ({"gap_salun_worst": 0.5}, 5),
        ({"transfer_ua_worst": 23.0}, 6),
    ],
)
def test_one_number_the_other_way_is_seen(change: dict[str, float], place: int) -> None:
    assert held(numbers(**change)) == [k != place for k in range(7)]


def test_a_failed_collapse_says_why() -> None:
    (check,) = [c for c in WorstCaseReproduction().judge([numbers(gap_salun_worst=0.5)]) if not c.holds]
    assert "false labels" in check.claim
    assert "salun (UA 1.0)" in check.detail


@pytest.mark.slow
def test_the_quick_version_measures_everything(tmp_path: Path) -> None:
    bench = Workbench(tmp_path / "seed", tmp_path / "shared", quick=True)
    found = WorstCaseReproduction().run(0, bench)
    assert set(found) == set(numbers())
