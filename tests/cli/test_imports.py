"""``expunge import``: what it asks for, what it prints at 80 columns, and mistakes in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.audits.base import Estimate
from expunge.benchmarks.open_unlearning import Asked
from expunge.benchmarks.open_unlearning_conclusions import Answer, Conclusion
from expunge.benchmarks.open_unlearning_effects import Effect
from expunge.benchmarks.open_unlearning_logs import LogRow
from expunge.benchmarks.open_unlearning_result import Comparison, MetricRow
from expunge.cli.app import app

LONG = "because of a very long reason that has to be wrapped somewhere before it is eighty columns wide"
FOUND = Comparison(
    {"split": "forget01"},
    [LogRow("forget_quality", 0.5, Estimate(0.25), False, (LONG,))],
    [MetricRow("ra_Q_A_Prob_normalised", 0.123456, 0.123457, Estimate(0.2, 0.1, 0.3, 9))],
    [MetricRow("mia_min_k_plus_plus", None, 0.5, Estimate(None, note="why"))],
    [Effect("strength floor", 3, 20, LONG), Effect("hidden tokens", 0, 20, "nothing to see")],
    [
        Conclusion("extraction_strength", "Can it be drawn out?", Answer("yes", "0.03"), Answer("no", LONG)),
        Conclusion("mia_loss", "Can it be told?", Answer("no", ""), Answer("no", "")),
    ],
)


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["import", *args])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What the command asks for; it gets ``FOUND``."""
    heard: list[Asked] = []

    def compare_run(one: Asked, progress: Any) -> Comparison:
        heard.append(one)
        return FOUND

    monkeypatch.setattr("expunge.benchmarks.open_unlearning.compare_run", compare_run)
    return heard


def test_options(asked: list[Asked], tmp_path: Path) -> None:
    done = run(
        "open-unlearning", "runs/a", "runs/b", "--model", "m", "--reference", "r", "--original", "o", "--split",
        "forget05", "--data", "d", "--holdout", "h", "--model-config", "c.yaml", "--metric", "x", "--metric", "y",
        "--dtype", "bfloat16", "--device", "cuda", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert asked == [
        Asked(Path("runs/a"), Path("runs/b"), "m", "r", "o", "forget05", "d", "h", Path("c.yaml"), ("x", "y"),
              "bfloat16", "cuda")
    ]  # fmt: skip
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"page.md", "results.json"}
    assert run("open-unlearning", "--model", "m").exit_code == 0
    assert asked[-1] == Asked(model="m")


def test_output_is_80_columns(asked: list[Asked]) -> None:
    done = run("open-unlearning", "runs/a")
    assert max(map(len, done.stdout.splitlines())) <= 80
    text = " ".join(done.stdout.split())
    assert "ra_Q_A_Prob_normalised 0.1235 0.1235 0.2000 0.0765" in text
    assert "mia_min_k_plus_plus - 0.5000 - -" in text
    assert "Conclusions that change: 1 of 2" in text
    assert "theirs: yes (0.03)" in text
    assert "Can it be told?" not in text
    assert "strength floor: 3 of 20" in text
    assert "nothing to see" not in text
    assert "not what follows from their own examples: forget_quality" in text


def test_json(asked: list[Asked]) -> None:
    done = run("open-unlearning", "runs/a", "--json")
    assert json.loads(done.stdout) == FOUND.to_dict()


def test_results_alone(tmp_path: Path) -> None:
    values = {"agg_value": 0.2, "value_by_index": {"0": {"prob": 0.1}, "1": {"prob": 0.3}}}
    (tmp_path / "TOFU_EVAL.json").write_text(json.dumps({"forget_Q_A_Prob": values, "privleak": {"agg_value": 3.0}}))
    done = run("open-unlearning", str(tmp_path))
    assert done.exit_code == 0, done.stderr
    assert "Nothing was recomputed" in done.stderr
    assert "forget_Q_A_Prob 0.2000 0.2000 yes" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "RUN_OR_CHECKPOINTS: names nothing"),
        (["nowhere"], "nowhere: does not exist"),
        (["a", "b", "c"], "names 3 folders"),
        (["--model", "m", "--metric", "forget_qualty"], "did you mean forget_quality"),
    ],
)
def test_mistakes(args: list[str], says: str) -> None:
    done = run("open-unlearning", *args)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_results_that_are_cut_off(tmp_path: Path) -> None:
    (tmp_path / "TOFU_EVAL.json").write_text('{"forget_quality": {"agg_')
    done = run("open-unlearning", str(tmp_path), "--json")
    assert done.exit_code == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["where"].endswith("TOFU_EVAL.json")
    assert "copy it again" in problem["fix"]


def test_import_alone_shows_what_can_be_read() -> None:
    done = run()
    assert "open-unlearning" in done.stdout + done.stderr
