"""``expunge reproduce``: what it prints, and that a claim which does not hold is no failure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from expunge.cli.app import app
from expunge.reproductions.base import Check, Reproduction, Workbench
from expunge.reproductions.runner import REPRODUCTIONS


class Coins(Reproduction):
    """A coin that never shows tails."""

    id = "coins"
    title = "a coin is thrown until it shows tails"
    paper = "Nobody 2024, Nothing"
    claim = "coins have two sides"

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        if seed == 13:
            raise RuntimeError("the coin is lost")
        return {"heads": 1.0, "tails": 0.0}

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        return [Check("tails is seen", any(run["tails"] for run in runs), "never seen: both sides are heads")]


@pytest.fixture(autouse=True)
def coins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REPRODUCTIONS._classes, "coins", Coins)


def call(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["reproduce", *args])
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def test_a_claim_that_does_not_hold_leaves_with_0(tmp_path: Path) -> None:
    code, out, _ = call("coins", "--seeds", "4,5", "--out", str(tmp_path))
    assert code == 0
    assert "DOES NOT HOLD: tails is seen" in out
    assert "never seen: both sides are heads" in out
    assert "does not hold here in every point. 2 seed(s)" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_json_has_everything(tmp_path: Path) -> None:
    code, out, _ = call("coins", "--quick", "--out", str(tmp_path), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["name"], found["holds"], found["seeds"], found["quick"]) == ("coins", False, [0, 1, 2], True)
    assert found["measured"]["heads"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    assert {"paper", "claim", "checks", "minutes", "facts"} <= set(found)


def test_a_crash_is_an_error(tmp_path: Path) -> None:
    code, out, err = call("coins", "--seeds", "13", "--out", str(tmp_path))
    assert code == 1
    assert out == ""
    assert "the coin is lost" in err


def test_the_list_has_every_reproduction() -> None:
    code, out, _ = call("--list", "--json")
    assert code == 0
    assert {"coins", "npo"} <= {item["name"] for item in json.loads(out)}
    assert "npo" in call("--list")[1]


def test_the_table_is_made_from_a_folder(tmp_path: Path) -> None:
    _, out, _ = call("coins", "--out", str(tmp_path / "run"), "--json")
    (tmp_path / "coins.json").write_text(out)
    code, table, _ = call("--table", str(tmp_path))
    assert code == 0
    assert "| [coins](#coins) | Nobody 2024, Nothing | coins have two sides | no | 3 |" in table
    assert [r["name"] for r in json.loads(call("--table", str(tmp_path), "--json")[1])] == ["coins"]
    code, _, err = call("--table", str(tmp_path / "nowhere"))
    assert code == 2
    assert "holds no *.json" in err


@pytest.mark.parametrize("seeds", ["a", "", "1,,2", "-1"])
def test_seeds_that_are_none_are_refused(seeds: str) -> None:
    code, _, err = call("coins", f"--seeds={seeds}")
    assert code == 2
    assert "is not a list of numbers" in err
