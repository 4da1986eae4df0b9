"""The ConceptVectors protocol: what is refused, how cells become a table, and a whole small run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks import concept_vectors_data
from expunge.benchmarks.concept_vectors import ConceptVectors, ConceptVectorsOptions, ConceptVectorsResult
from expunge.errors import BadInput
from expunge.runs.progress import Progress


def run(**options: Any) -> ConceptVectorsResult:
    return ConceptVectors().run(ConceptVectorsOptions(**options), Progress())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"methods": ("npoo",)}, "npo"),
        ({"overrides": ("bate=1",)}, "beta"),
        ({"data": "c.json"}, "--data: names vectors of a model that is not given"),
        ({"model": "m", "books": ("a", "b")}, "--book: is given beside --model"),
        ({"books": ("a",)}, "at least two books"),
        ({"model": "m", "data": "absent.json"}, "absent.json is no file"),
        ({"books": ("absent.txt", "gone.txt")}, "absent.txt"),
    ],
)
def test_bad_input_is_refused_before_work(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        run(out=tmp_path / "out", **{"methods": ("npo",), **options})


def cell(method: str, seed: int, **numbers: Any) -> dict[str, Any]:
    return {"concept": "Poland", "method": method, "seed": seed, "status": "measured", "note": "", "reached": True,
            "article_nll_after": 3.0, **numbers}  # fmt: skip


FACTS = {"model": "m", "concepts": 2, "seeds": [0, 1], "rise": 2.0}


def test_means_are_over_concepts_and_intervals_over_seeds() -> None:
    cells = [cell("npo", seed, jaccard=0.8 + 0.1 * seed + 0.05 * k) for seed in (0, 1) for k in (0, 1)]
    (row,) = ConceptVectorsResult(cells, FACTS).rows()
    assert row["jaccard"].value == pytest.approx(0.875)  # type: ignore[union-attr]
    assert row["jaccard"].n == 2  # type: ignore[union-attr]
    assert row["reached"] == "4 of 4"


def test_what_could_not_be_measured_is_said_and_is_no_zero() -> None:
    cells = [cell("npo", 0, jaccard=0.8), {**cell("npo", 0), "status": "no data", "note": "no weights"}]
    result = ConceptVectorsResult(cells, FACTS)
    assert result.rows()[0]["jaccard"].value == pytest.approx(0.8)  # type: ignore[union-attr]
    assert "No data: Poland, npo: no weights" in result.to_markdown()


@pytest.mark.slow
def test_a_whole_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concept_vectors_data, "SHAPE", {"hidden": 96, "layers": 2, "heads": 4})
    options: dict[str, Any] = {
        "concepts": 3, "seeds": (0,), "jobs": 1, "methods": ("npo", "needle"), "new_tokens": 12,
        "out": tmp_path / "out", "overrides": ("max_steps=6",),
    }  # fmt: skip
    result = run(**options)
    rows = {row["method"]: row for row in result.rows()}
    assert rows["original"]["jaccard"].value == pytest.approx(1.0)  # type: ignore[union-attr]
    assert rows["needle"]["jaccard"].value < rows["npo"]["jaccard"].value  # type: ignore[union-attr, operator]
    assert "| Method | Jaccard |" in result.to_markdown()
    assert run(**options).cells == result.cells
    assert {p.name for p in (tmp_path / "out").glob("*.*")} >= {"results.json", "table.md", "table.csv"}
