"""The MUSE protocol: what is refused, and a whole small run on made-up books."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import muse
from expunge.benchmarks.muse import Muse, MuseOptions
from expunge.benchmarks.muse_result import MuseResult
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def run_muse(**options: Any) -> MuseResult:
    return Muse().run(MuseOptions(**options), Progress())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("npoo",)}, "npo"),
        ({"overrides": ("bate=1",)}, "beta"),
        ({"model": "somewhere"}, "oracle"),
        ({"model": "a", "oracle": "b", "methods": ("retrain",)}, "retrain"),
        ({"prepare": ("absent.txt",)}, "absent.txt"),
        ({"prepare": ("absent.txt",), "data": "there"}, "one of them"),
        ({"data": "absent"}, "raw"),
    ],
)
def test_bad_input_is_refused_before_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        run_muse(out=tmp_path / "out", **{"methods": ("npo",), **options})
    assert not (tmp_path / "out").exists()


def books(folder: Path) -> tuple[str, ...]:
    names = ("Mirela", "Tomas", "Anton", "Greta", "Ilves", "Otto", "Vera", "Ludo", "Nina", "Emil", "Rosa", "Hugo")
    out = []
    for title, first in (("Rain", 0), ("Snow", 1000)):
        told = [
            f"On day {k} the old {names[k % 12]} met a friend named {names[(5 * k + 1) % 12]}. They walked {k} miles."
            for k in range(first, first + 60)
        ]
        (folder / f"{title}.txt").write_text("\n\n".join(told), encoding="utf-8")
        out.append(str(folder / f"{title}.txt"))
    return tuple(out)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["knowmem", "loss"])
def test_a_whole_small_run(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muse, "SHAPE", {"hidden": 16, "layers": 1, "heads": 2, "context": 128})
    monkeypatch.setattr(muse, "VOCABULARY", 320)
    monkeypatch.setattr(muse, "SCRATCH", {"epochs": 1, "batch_size": 32, "learning_rate": 1e-3})
    options: dict[str, Any] = {
        "prepare": books(tmp_path), "passages": 8, "words": 20, "seeds": (0,), "jobs": 1, "checkpoint": checkpoint,
        "methods": ("retrain", "grad_diff", "task_vector"), "epochs": 2, "out": tmp_path / "out",
        "overrides": ("stop.forget_target=9.0", "max_steps=2"),
    }  # fmt: skip
    result = run_muse(**options)
    assert [(c["method"], c["seed"]) for c in result.cells] == [
        ("original", 0), ("retrain", 0), ("grad_diff", 0), ("task_vector", 0),
    ]  # fmt: skip
    own = result.cells[2]
    assert [fold["texts"] for fold in own["scal"]] == [2, 4, 6, 8]
    assert [fold["texts"] for fold in own["sust"]] == [2, 4, 6, 8]
    assert (own["reached"] is None) == (checkpoint == "loss")
    assert "grad_diff" in (tmp_path / "out/table.md").read_text(encoding="utf-8")
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "out/cells").rglob("*.json")}
    again = run_muse(**options)
    assert times == {f: f.stat().st_mtime_ns for f in (tmp_path / "out/cells").rglob("*.json")}, "nothing again"
    assert again.cells == result.cells
