"""A sweep of tiny runs: nothing twice, nothing lost, one failure stops nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.errors import BadInput
from expunge.runs import sweep as sweeping
from expunge.runs.entries import Choice
from expunge.runs.grid import Cell, plan_sweep
from expunge.runs.progress import Progress
from expunge.runs.sweep import SweepResult, run_sweep

QUICK = {"max_steps": 1, "batch_size": 8, "learning_rate": 1e-4, "checkpoint_every": 0}


@pytest.fixture
def cells(files: Any, tmp_path: Path) -> list[Cell]:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(files.fields(settings=QUICK, audits=["probability"])), encoding="utf-8")
    return plan_sweep(path, {}, [], ["npo", "gradient_ascent"], [0, 1], 9.0)


def here(cells: list[Cell], out: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> SweepResult:
    """Run the cells in this process, so that a test can stop them."""
    monkeypatch.setattr(sweeping, "run_all", lambda call, arguments, **_: (call(*given) for given in arguments))
    return run_sweep(cells, out, Choice(9.0), **more)


def times(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/report.json")}


def test_every_cell_is_a_run_and_none_is_run_twice(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = here(cells, out, monkeypatch)
    assert first.ran == len(cells) == 4
    before = times(out)
    assert set(before) == {cell.name for cell in cells}
    again = here(cells, out, monkeypatch)
    assert again.ran == 0
    assert times(out) == before
    assert again.board.to_dict() == first.board.to_dict()
    stored = json.loads((out / "leaderboard.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in stored["rows"]} == {"npo", "gradient_ascent"}
    assert all((out / f"leaderboard.{kind}").is_file() for kind in ("html", "csv", "md"))


def test_an_interruption_loses_only_what_was_running(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Impatient(Progress):
        def step(self, done: int, total: int, values: Any = "") -> None:
            if done == 2:
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        here(cells, out, monkeypatch, progress=Impatient())
    before = times(out)
    assert len(before) == 2
    done = here(cells, out, monkeypatch)
    assert done.ran == 2
    assert {name: when for name, when in times(out).items() if name in before} == before


def test_a_cell_that_fails_is_shown_and_tried_again(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = sweeping.run_job

    def broken(recipe: Any, folder: str, **more: Any) -> Any:
        if recipe.method == "npo" and recipe.seed == 1:
            raise RuntimeError("out of luck\nand more")
        return real(recipe, folder, **more)

    monkeypatch.setattr(sweeping, "run_job", broken)
    done = here(cells, out, monkeypatch)
    (name,) = done.failed
    assert name.startswith("npo-1-")
    assert done.failed[name] == "RuntimeError: out of luck"
    assert len(times(out)) == 3
    assert "out of luck" in (out / "leaderboard.html").read_text(encoding="utf-8")
    monkeypatch.setattr(sweeping, "run_job", real)
    again = here(cells, out, monkeypatch)
    assert again.ran == 1
    assert not again.failed


def test_a_folder_of_something_else_is_refused(
    cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(BadInput, match="not the folder of a sweep"):
        here(cells, tmp_path / "other", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_workers_give_what_one_gives(
    engine: Any, cells: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = run_sweep(cells, tmp_path / "alone", Choice(9.0), jobs=1)
    if engine == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        both = run_sweep(cells, tmp_path / "both", Choice(9.0), jobs=2, engine=engine)
    finally:
        if engine == "ray":
            ray.shutdown()
    assert not both.failed
    for one, other in zip(alone.board.groups, both.board.groups, strict=True):
        for a, b in zip(one.entries, other.entries, strict=True):
            assert a.forget == pytest.approx(b.forget, abs=1e-5)
            assert a.retain == pytest.approx(b.retain, abs=1e-5)
