from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.benchmarks import muse_cell
from expunge.benchmarks.muse_cell import Cell, _leak, _once, run_cell


def test_privleak_is_undefined_where_the_oracle_tells_all_apart() -> None:
    """MUSE counts 1 - AUC: (1 - 0.9) against (1 - 0.6) is 0.1 against 0.4, so -75 %."""
    assert _leak(0.9, 0.6)["privleak"] == pytest.approx(-75.0)
    assert _leak(0.9, 1.0)["privleak"] is None
    assert _leak(0.9, None) == {}


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"a": 1}

    assert _once(tmp_path / "x/stage.json", make) == _once(tmp_path / "x/stage.json", make) == {"a": 1}
    assert len(made) == 1


def test_a_finished_cell_is_read_without_loading_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muse_cell, "_load", lambda path: pytest.fail("loads a model"))
    (tmp_path / "result.json").write_text(json.dumps({"method": "npo", "seed": 1}))
    cell = Cell(tmp_path, "w", "npo", 1, "m", "o", {}, "loss", 1, True, 4)
    assert run_cell(cell) == {"method": "npo", "seed": 1}
