from __future__ import annotations

import json
from pathlib import Path

from expunge.benchmarks.concept_vectors_cell import Cell, run_cell
from expunge.requests.request import example_id


def test_a_finished_cell_is_not_done_again(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "no such model", tmp_path / "none.json", 0, "npo", {"beta": 0.1}, 2.0, 10, 3)
    key = example_id({"settings": {"beta": 0.1}, "rise": 2.0, "tokens": 10})
    (tmp_path / f"0-npo-3-{key}.json").write_text(json.dumps({"jaccard": 0.5}))
    assert run_cell(cell) == {"jaccard": 0.5}
