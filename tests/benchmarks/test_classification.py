from __future__ import annotations

from pathlib import Path

import pytest

from expunge.benchmarks.base import read_options
from expunge.benchmarks.classification import Classification, ClassificationOptions
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def test_a_table_from_options_to_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expunge.runs.engine.run_all", lambda call, given, **_: (call(*g) for g in given))
    given = {"dataset": "digits", "scenario": ["random"], "methods": ["random_label,ssd"], "seeds": ["0"],
             "size": 120, "trials": 1, "out": tmp_path, "overrides": ["epochs=2"]}  # fmt: skip
    given["dataset"] = ["digits"]
    result = Classification().run(read_options(ClassificationOptions, given), Progress())
    rows = {str(row["method"]): row for row in result.rows("digits", "random")}
    assert set(rows) == {"retrain", "retrain, other seed", "original", "random_label", "ssd"}
    assert (tmp_path / "table.md").is_file()
    assert result.to_dict()["sets"]["digits"]["settings"]["random"]["random_label"]["epochs"] == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dataset": ("digts",)}, "digits"),
        ({"dataset": ("abalone",)}, "not one of this benchmark"),
        ({"dataset": ("digits",), "scenario": ("range",)}, "range"),
        ({"dataset": ("digits", "adult"), "scenario": ("class",)}, "adult has none"),
    ],
)
def test_what_is_not_offered_is_refused(given: dict[str, tuple[str, ...]], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        Classification().run(ClassificationOptions(**given, out=tmp_path), Progress())  # type: ignore[arg-type]
    assert not any(tmp_path.iterdir())
