from __future__ import annotations

import json
from typing import Any

from expunge.benchmarks.muse_result import MuseResult


def cell(method: str, seed: int, privleak: float | None, folds: tuple[float, ...] = ()) -> dict[str, Any]:
    fold = [{"texts": 4 * (k + 1), "knowmem_r": v, "privleak": 0.0, "verbmem": 1.0} for k, v in enumerate(folds)]
    return {
        "method": method, "seed": seed, "verbmem": 10.0 + seed, "knowmem_f": 5.0, "privleak": privleak, "auc": 0.5,
        "knowmem_r": 50.0, "forget_nll": 2.0, "verbmem_empty": 0.0, "knowmem_f_empty": 0.3, "knowmem_r_empty": 0.0,
        "reached": seed == 0, "scal": fold, "sust": fold,
    }  # fmt: skip


def test_tables_and_sentences_say_what_was_measured() -> None:
    cells = [
        cell("original", 0, -100.0), cell("retrain", 0, 1.0),
        cell("near", 0, 10.0, (60.0, 40.0)), cell("near", 1, 12.0, (60.0, 30.0)), cell("far", 0, 80.0),
        cell("none", 0, None),
    ]  # fmt: skip
    result = MuseResult(cells, {"checkpoint": "knowmem", "corpus": "c", "models": "m"})
    rows = {row["method"]: row for row in result.rows()}
    assert rows["near"]["verbmem"].value == 10.5
    assert rows["near"]["reached"] == "1 of 2"
    assert rows["none"]["privleak"].value is None
    assert round(rows["near"]["empty"].value, 3) == 0.1
    folds, columns = result.fold_rows("scal")
    assert [c.title for c in columns] == ["Method", "4 texts", "8 texts"]
    assert folds[0]["1"].value == 35.0
    assert result.sentences()[0] == "PrivLeak within 20 of the retrained model: near."
    assert "near -25.0" in result.sentences()[1]
    text = result.to_markdown()
    assert "criterion 5" in text
    assert "criterion 6" in text
    json.dumps(result.to_dict(), allow_nan=False)
    assert "<table" in result.to_html()
