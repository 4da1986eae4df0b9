"""The TOFU protocol: what is refused, and a whole small run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import tofu
from expunge.benchmarks.tofu import Tofu, TofuOptions
from expunge.benchmarks.tofu_result import TofuResult
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def run_tofu(**options: Any) -> TofuResult:
    return Tofu().run(TofuOptions(**options), Progress())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("npoo",)}, "npo"),
        ({"overrides": ("bate=1",)}, "beta"),
        ({"model": "somewhere"}, "oracle"),
        ({"model": "somewhere", "oracle": ("there",), "methods": ("retrain",)}, "retrain"),
    ],
)
def test_bad_input_is_refused_before_work(
    options: dict[str, Any], words: str, tofu_files: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=words):
        run_tofu(data=str(tofu_files(authors=6)), out=tmp_path / "out", **{"methods": ("npo",), **options})
    assert not (tmp_path / "out").exists()


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run_tofu(
            data=str(tmp_path / "none"), split=("forget1",), methods=("npoo", "npo"), overrides=("bate=1", "epochs=x"),
            out=tmp_path / "out", oracle=("there",),
        )  # fmt: skip
    places = [p.where for p in caught.value.problems]
    assert sorted(places) == ["--data", "--oracle", "--set bate", "--split", "method", "training: epochs"]


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
