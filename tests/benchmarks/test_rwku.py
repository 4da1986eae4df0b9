"""The RWKU protocol: what is refused, and a whole small run on the embedded world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import rwku
from expunge.benchmarks.rwku import Rwku, RwkuOptions, RwkuResult
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def run_rwku(**options: Any) -> RwkuResult:
    return Rwku().run(RwkuOptions(**options), Progress())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("npoo",)}, "npo"),
        ({"methods": ("finetune",)}, "needs a retain set"),
        ({"prepare": "facts.jsonl"}, "where the probes go"),
        ({"data": "absent"}, "holds no folder"),
    ],
)
def test_bad_input_is_refused_before_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        run_rwku(out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_own_facts_become_the_files_and_real_targets_need_a_model_that_knows_them(tmp_path: Path) -> None:
    fact = {"subject": "Vera", "question": "What is Vera?", "statement": "Vera is a diver.", "answer": "diver"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(fact), encoding="utf-8")
    made = run_rwku(prepare=str(tmp_path / "facts.jsonl"), data=str(tmp_path / "made"))
    assert "1 with" in made.to_markdown()
    with pytest.raises(BadInput, match="no small model trained here knows"):
        run_rwku(data=str(tmp_path / "made"), out=tmp_path / "out")


def test_tables_average_targets_before_seeds() -> None:
    cells = [
        {"method": "npo", "seed": s, "target": t, "qa": value, "aa": value + 10, "aa/role play": value}
        for (s, t), value in {(0, "a"): 10.0, (0, "b"): 30.0, (1, "a"): 50.0, (1, "b"): 50.0}.items()
    ]
    result = RwkuResult(cells, {"targets": "a, b", "models": "none"})
    assert result.per_seed("npo", "qa") == [20.0, 50.0]
    assert result.per_seed("npo", "absent") == [None, None]
    (row,) = result.rows()
    assert row["qa"].value == 35.0  # type: ignore[union-attr]
    assert result.sentences()[0].startswith("npo: adversarial minus plain questions +10.0")
    assert "role play" in result.to_markdown()
    assert "RWKU" in result.to_html()


@pytest.mark.slow
def test_a_whole_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwku, "SHAPE", {"hidden": 16, "layers": 1, "heads": 2, "context": 128})
    monkeypatch.setattr(rwku, "VOCABULARY", 400)
    monkeypatch.setattr(rwku, "SCRATCH", {"epochs": 1, "batch_size": 64, "learning_rate": 1e-3})
    options: dict[str, Any] = {
        "targets": 1, "methods": ("npo", "idk", "task_vector"), "seeds": (0,), "jobs": 1, "out": tmp_path,
        "overrides": ("max_steps=2",),
    }  # fmt: skip
    result = run_rwku(**options)
    assert result.methods() == ["original", "retrain", "npo", "idk", "task_vector"]
    assert all(set(c) >= {"target", "empty", "fm_loss", "general"} for c in result.cells)
    for name in ("results.json", "table.md", "table.html", "table.csv"):
        assert (tmp_path / name).is_file()
    again = run_rwku(**options)
    assert again.cells == result.cells
