from __future__ import annotations

from pathlib import Path

import pytest

from expunge.audits.verification import IRRELEVANT, RIGHT, WRONG
from expunge.data.fictitious import FictitiousWorld
from expunge.reproductions.base import Workbench
from expunge.reproductions.kalmv import KALMVReproduction, _Shop


def test_claims_are_labelled_by_the_papers_rule() -> None:
    """Right where the value is said from the fact that was asked for; corrupted in three of ten cases, twice."""
    world = FictitiousWorld(30)
    shop = _Shop(world, 0)
    rows = world.questions().to_list()
    counts = {RIGHT: 0, WRONG: 0, IRRELEVANT: 0}
    for row in rows:
        said = shop.answer(row, 0, 0)
        assert said == shop.answer(row, 0, 0)
        counts[said.label] += 1
        assert (said.label == IRRELEVANT) == (said.claim.knowledge != row["answer"])
        if said.label == RIGHT:
            assert row["value"].lower() in said.claim.answer.lower()
        if said.label == WRONG:
            assert row["value"].lower() not in said.claim.answer.lower()
    assert counts[IRRELEVANT] / len(rows) == pytest.approx(0.3, abs=0.08)
    assert counts[RIGHT] / len(rows) == pytest.approx(0.49, abs=0.08)


def test_the_quick_version(tmp_path: Path) -> None:
    bench = Workbench(tmp_path / "seed", tmp_path / "shared", quick=True)
    numbers = KALMVReproduction().run(0, bench)
    assert numbers["verifier_accuracy"] > 0.8
    assert numbers["coverage_1"] >= numbers["coverage_0"]
    assert all(check.detail for check in KALMVReproduction().judge([numbers]))


def test_judging_says_so_where_filtering_does_not_help() -> None:
    numbers = {
        "raw_accuracy": 0.5, "filtered_accuracy_0": 0.4, "coverage_0": 0.3, "verifier_accuracy": 0.8,
        "mean_single_view_accuracy": 0.9, "solved_0": 0.2, "solved_1": 0.2, "solved_3": 0.2,
    }  # fmt: skip
    assert [check.holds for check in KALMVReproduction().judge([numbers])] == [False, False, False]
