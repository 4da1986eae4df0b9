"""The TOFU table: what is compared, what is refused, and a whole small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import tofu
from expunge.benchmarks.tofu import TofuResult, matched, run_tofu
from expunge.errors import BadInput


def cell(method: str, seed: int, utility: float, forget_nll: float = 3.0) -> dict[str, Any]:
    return {
        "split": "forget01", "method": method, "seed": seed, "forget_nll": forget_nll, "target_nll": 3.0,
        "oracle_nll": 7.0, "original_nll": 0.0, "model_utility/utility": utility,
    }  # fmt: skip


FACTS = {"models": "small", "rows": "few", "target": "3.0 nats per token"}


def test_matched_means_within_a_tenth_of_the_way() -> None:
    assert matched(cell("npo", 0, 0.5, 2.71))
    assert matched(cell("npo", 0, 0.5, 3.3))
    assert not matched(cell("npo", 0, 0.5, 2.69))


def test_methods_are_compared_pairwise_over_seeds_that_forgot_equally() -> None:
    cells = [cell("npo", s, 0.6 + 0.01 * s) for s in range(4)] + [cell("gradient_ascent", s, 0.5) for s in range(4)]
    cells[3]["forget_nll"] = 1.0  # did not forget: must not enter
    found = TofuResult(cells, FACTS).difference("forget01", "npo", "gradient_ascent")
    # Differences .10, .11, .12: mean .11, sd .01, t(2) at 97.5 % = 4.303, half width .01 / sqrt(3) * 4.303 = .0248.
    assert found.n == 3
    assert found.value == pytest.approx(0.11)
    assert found.low == pytest.approx(0.11 - 0.02484, abs=1e-4)
    assert "keeps more utility" in TofuResult(cells, FACTS).sentences("forget01")[0]


@pytest.mark.parametrize(
    ("npo", "words"),
    [([0.3, 0.31, 0.32], "keeps less utility"), ([0.2, 0.9, 0.5], "no difference"), ([0.5], "one seed")],
)
def test_the_sentence_says_whichever_way_it_came_out(npo: list[float], words: str) -> None:
    cells = [cell("npo", s, u) for s, u in enumerate(npo)] + [cell("gradient_ascent", s, 0.5) for s in range(len(npo))]
    assert words in TofuResult(cells, FACTS).sentences("forget01")[0]


def test_unequal_forgetting_is_not_compared() -> None:
    cells = [cell("npo", 0, 0.9, 1.0), cell("gradient_ascent", 0, 0.5)]
    assert "not comparable" in TofuResult(cells, FACTS).sentences("forget01")[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("npoo",)}, "npo"),
        ({"overrides": ("bate=1",)}, "beta"),
        ({"seeds": ()}, "seeds"),
        ({"model": "somewhere"}, "oracle"),
        ({"model": "somewhere", "oracles": ("there",), "methods": ("retrain",)}, "retrain"),
    ],
)
def test_bad_input_is_refused_before_work(
    options: dict[str, Any], words: str, tofu_files: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=words):
        run_tofu(data=str(tofu_files(authors=6)), out=tmp_path / "out", **{"methods": ("npo",), **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_small_run(tofu_files: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tofu, "SHAPE", {"hidden": 16, "layers": 1, "heads": 2})
    monkeypatch.setattr(tofu, "VOCABULARY", 320)
    monkeypatch.setattr(tofu, "SCRATCH", {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3})
    options: dict[str, Any] = {
        "data": str(tofu_files(authors=6)), "methods": ("retrain", "gradient_ascent"), "seeds": (0, 1), "jobs": 1,
        "overrides": ("max_steps=2", "stop.forget_target=9.0"), "audited": 8, "out": tmp_path / "out",
    }  # fmt: skip
    result = run_tofu(**options)
    assert [(c["method"], c["seed"]) for c in result.cells] == [
        ("original", 0), ("retrain", 0), ("retrain", 1), ("gradient_ascent", 0), ("gradient_ascent", 1),
    ]  # fmt: skip
    assert all(c["model_utility/utility"] is not None for c in result.cells)
    stored = json.loads((tmp_path / "out/results.json").read_text(encoding="utf-8"))
    assert len(stored["cells"]) == 5
    assert "gradient_ascent" in (tmp_path / "out/table.md").read_text(encoding="utf-8")
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "out/cells").rglob("result.json")}
    run_tofu(**options)
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "out/cells").rglob("result.json")}, "nothing again"
