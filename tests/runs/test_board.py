"""A leaderboard from made-up reports: who is matched, who is chosen, who is not beaten."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from expunge.audits.base import Estimate, Finding, Scalar
from expunge.errors import BadInput
from expunge.reports.report import MethodSummary, ModelSummary, RequestSummary, RunReport
from expunge.runs.board import Board, board_of
from expunge.runs.comparison import ComparedRun
from expunge.runs.entries import Choice

SCALARS = (
    Scalar("forget_nll", "NLL, forget", "nats/token", "low"),
    Scalar("holdout_nll", "NLL, holdout", "nats/token"),
    Scalar("retain_probability", "Probability, retain", "probability"),
    Scalar("retain_nll", "NLL, retain", "nats/token"),
)


def run(method: str, forget: float | None, retain: float, seed: int = 0, **settings: Any) -> ComparedRun:
    def numbers(forget: float | None, retain: float) -> dict[str, Estimate]:
        return {
            "forget_nll": Estimate(forget), "holdout_nll": Estimate(5.0), "retain_probability": Estimate(retain),
            "retain_nll": Estimate(1 - retain),
        }  # fmt: skip

    models = {"unlearned": numbers(forget, retain), "original": numbers(0.0, 1.0), "oracle": numbers(4.0, 0.95)}
    report = RunReport(
        title="t",
        created="2025-01-01",
        request=RequestSummary("people", "examples", 10, fingerprint="f"),
        removal_level="approximate",
        models=dict.fromkeys(models, ModelSummary()),
        verdict={"result": "inconclusive", "sentence": ""},
        findings=[Finding("probability", scalars=SCALARS, estimates=models)],
        method=MethodSummary(method, {**settings, "seed": seed}),
        seeds={"all": seed},
        cost={"forgetting": {"seconds": 2.0, "flops": 1e9}},
    )
    name = f"{method}-{seed}-{settings}"
    return ComparedRun(name, Path(name), report)


def board(*runs: ComparedRun, **choice: Any) -> Board:
    return board_of(runs, Choice(**choice), {"bad-0-x": "RuntimeError: broken"})


def test_only_runs_that_forgot_equally_are_counted() -> None:
    found = board(run("a", 3.7, 0.8), run("a", 4.39, 0.6, 1), run("a", 1.0, 0.99, 2))
    row = found.rows()[-1]
    assert row["matched"] == "2 of 3", "within a tenth of the way from 0 to 4"
    kept = row["probability/retain_probability"]
    assert isinstance(kept, Estimate)
    assert kept.value == pytest.approx(0.7)
    assert kept.n == 2


def test_the_settings_that_match_most_seeds_stand_for_a_method_then_those_that_kept_most() -> None:
    found = board(
        run("a", 4.0, 0.5, 0, beta=1), run("a", 4.0, 0.5, 1, beta=1),
        run("a", 4.0, 0.9, 0, beta=2), run("a", 1.0, 0.9, 1, beta=2),
        run("a", 4.0, 0.6, 0, beta=3), run("a", 4.0, 0.6, 1, beta=3),
        run("b", 1.0, 0.9, 0, beta=1), run("b", 2.0, 0.1, 0, beta=2),
    )  # fmt: skip
    assert [(g.method, g.settings["beta"], len(g.matched)) for g in found.ranked()] == [("a", 3, 2), ("b", 2, 0)]
    assert any("chosen on the numbers" in note for note in found.notes())


def test_rows_without_a_match_come_last_however_much_they_kept() -> None:
    found = board(run("a", 1.0, 0.99), run("b", 4.0, 0.5), run("c", 4.0, 0.7))
    assert [row["method"] for row in found.rows()] == ["original", "oracle", "c", "b", "a"]


@pytest.mark.parametrize(("level", "forget", "number"), [("oracle", 4.0, 4.0), ("holdout", 5.0, 5.0), (2.5, 2.5, 2.5)])
def test_levels(level: Any, forget: float, number: float) -> None:
    found = board(run("a", forget, 0.5), level=level)
    assert found.level() == number
    assert len(found.chosen[0].matched) == 1


def test_no_data_is_never_matched() -> None:
    assert board(run("a", None, 0.5)).chosen[0].matched == []


def test_less_can_be_more() -> None:
    found = board(run("a", 4.0, 0.2), run("b", 4.0, 0.8), keep="probability/retain_nll")
    assert [g.method for g in found.ranked()] == ["b", "a"]
    assert found.front() == ["b"]


def test_not_beaten_is_nearer_to_the_level_or_keeps_more() -> None:
    found = board(run("near", 4.0, 0.5), run("keeps", 3.0, 0.9), run("neither", 3.0, 0.5), run("beyond", 8.0, 0.5))
    assert set(found.front()) == {"near", "keeps"}


def test_without_a_level_all_settings_stand_and_nothing_is_ranked() -> None:
    found = board(run("a", 4.0, 0.5, beta=1), run("a", 1.0, 0.5, beta=2), level=None)
    assert len(found.chosen) == 2
    assert any("do not rank" in note for note in found.notes())


def test_what_a_choice_names_must_be_there() -> None:
    with pytest.raises(BadInput, match="forget_nll"):
        board(run("a", 4.0, 0.5), on="probability/forget_nil")
    alone = run("a", 4.0, 0.5)
    alone.report.models.pop("oracle")  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="--level"):
        board(alone)
    assert "probability/retain_nll" in board(run("a", 4.0, 0.5), keep="probability/retain_nll").keys


def test_every_form_says_what_failed() -> None:
    found = board(run("a", 4.0, 0.5, beta=1), run("a", 4.0, 0.4, beta=2))
    assert found.to_dict()["failed"] == {"bad-0-x": "RuntimeError: broken"}
    assert "RuntimeError: broken" in found.to_markdown()
    page = found.to_html()
    assert "RuntimeError: broken" in page
    assert "<svg" in page
    assert "All settings" in page
    assert "src=" not in page
    lines = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [(line["method"], line["settings"], line["probability/forget_nll"]) for line in lines] == [
        ("a", "beta=1", "4.0"), ("a", "beta=2", "4.0"),
    ]  # fmt: skip
    assert len(found.to_dict()["runs"]) == 2


def test_a_board_of_nothing_still_says_what_failed() -> None:
    found = board()
    assert found.to_dict()["rows"] == []
    assert "RuntimeError: broken" in found.to_html()
