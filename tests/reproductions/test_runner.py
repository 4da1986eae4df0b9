"""The runner: seeds are kept, a crash is no result, and what is written says how it came about."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from expunge.errors import BadInput, ExpungeError
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.runner import REPRODUCTIONS, reproduce


class Coins(Reproduction):
    """Counts its runs; fails or measures nonsense when told to."""

    id = "coins"
    title = "a made-up reproduction for tests"
    paper = "Nobody 2024, Nothing"
    claim = "seeds are at least 1"

    def __init__(self, broken: Mapping[int, float | Exception] | None = None):
        self.broken, self.ran = dict(broken or {}), list[int]()

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        self.ran.append(seed)
        assert bench.folder.is_dir()
        value = self.broken.get(seed, float(seed))
        if isinstance(value, Exception):
            raise value
        return {"seed": value, "quick": bench.quick, **({"odd": 1.0} if seed % 2 else {})}

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        return [Check("every seed is at least 1", min(column(runs, "seed")) >= 1, f"mean {mean(runs, 'seed')}")]


def test_mean_interval_and_judgement_over_seeds(tmp_path: Path) -> None:
    result = reproduce(Coins(), out=tmp_path)
    assert (result.seeds, result.holds) == ((0, 1, 2), False)
    assert result.measured["seed"].value == 1
    # Student's t with 2 degrees of freedom, deviation 1: 4.3027 / sqrt(3)
    assert result.measured["seed"].high == pytest.approx(1 + 4.302653 / math.sqrt(3))
    assert result.measured["odd"].n == 1, "what a seed has not measured is left out"
    stored = json.loads((tmp_path / "coins/result.json").read_text())
    assert stored == result.to_dict()
    assert stored["checks"] == [{"claim": "every seed is at least 1", "holds": False, "detail": "mean 1.0"}]
    assert stored["facts"]["command"] == "expunge reproduce coins"


def test_the_claim_can_hold(tmp_path: Path) -> None:
    result = reproduce(Coins(), seeds=(1, 2), out=tmp_path)
    assert result.holds
    assert result.facts["command"] == "expunge reproduce coins --seeds 1,2"


def test_finished_seeds_are_not_run_again(tmp_path: Path) -> None:
    first = Coins({2: RuntimeError("killed")})
    with pytest.raises(RuntimeError, match="killed"):
        reproduce(first, out=tmp_path)
    assert not (tmp_path / "coins/result.json").exists(), "a crash is not 'does not hold'"
    second = Coins()
    result = reproduce(second, out=tmp_path)
    assert (first.ran, second.ran) == ([0, 1, 2], [2])
    assert result.runs == reproduce(Coins(), out=tmp_path / "at once").runs
    assert (result.minutes > 0) is True


def test_quick_and_full_seeds_are_kept_apart(tmp_path: Path) -> None:
    reproduce(Coins(), seeds=(1,), out=tmp_path)
    quick = Coins()
    assert reproduce(quick, seeds=(1,), quick=True, out=tmp_path).measured["quick"].value == 1
    assert quick.ran == [1]
    assert reproduce(Coins(), seeds=(1,), out=tmp_path).measured["quick"].value == 0


def test_a_changed_reproduction_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reproduce(Coins(), seeds=(1,), out=tmp_path)
    monkeypatch.setattr("expunge.reproductions.runner._code", lambda chosen: "other")
    again = Coins()
    reproduce(again, seeds=(1,), out=tmp_path)
    assert again.ran == [1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_an_error(value: float, tmp_path: Path) -> None:
    with pytest.raises(ExpungeError, match=r"coins, seed 1: measured seed = (nan|inf)"):
        reproduce(Coins({1: value}), out=tmp_path)
    assert not (tmp_path / "coins/seed-1.json").exists()


def test_wrong_requests_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="did you mean npo"):
        reproduce("npoo", out=tmp_path)
    with pytest.raises(BadInput, match="repeats"):
        reproduce(Coins(), seeds=(1, 1), out=tmp_path)
    assert "npo" in REPRODUCTIONS.names()
