"""The page and the plain values of a comparison, of one made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from expunge.audits.base import Estimate
from expunge.benchmarks.open_unlearning_conclusions import Answer, Conclusion
from expunge.benchmarks.open_unlearning_effects import Effect
from expunge.benchmarks.open_unlearning_logs import LogRow
from expunge.benchmarks.open_unlearning_result import Comparison, MetricRow, log_cells, shown
from expunge.errors import BadInput

NONE = Estimate(None, note="why")
OURS = Estimate(0.25, 0.2, 0.3, 40)


def test_rows() -> None:
    row = MetricRow.of("x", {"agg_value": 0.5}, {"agg_value": 0.4}, OURS)
    assert (row.logged, row.recomputed, row.note) == (0.5, 0.4, "")
    assert row.difference == pytest.approx(-0.15)
    only_logged = MetricRow.of("x", {"agg_value": 0.5}, None, OURS)
    assert (only_logged.difference, only_logged.note) == (-0.25, "not recomputed here")
    nan = MetricRow.of("x", None, {"agg_value": math.nan}, NONE)
    assert (nan.logged, nan.recomputed, nan.difference, nan.note) == (None, None, None, "NaN there; ours: why")
    assert MetricRow.of("x", None, {"agg_value": None}, OURS).note == "no value there"


@pytest.fixture
def comparison() -> Comparison:
    return Comparison(
        facts={"split": "forget01"},
        checks=[
            LogRow("a", 0.5, Estimate(0.5, 0.4, 0.6, 9), True, ("look",)),
            LogRow("b", 0.1, Estimate(0.2), False),
            LogRow("c", None, NONE, None),
        ],
        rows=[MetricRow("a", 0.5, 0.5, OURS), MetricRow("b", None, None, NONE, "NaN there")],
        retained_rows=[MetricRow("a", None, 0.7, OURS)],
        effects=[Effect("floor", 3, 9, "too high"), Effect("hidden", 0, 9, "out of sight")],
        conclusions=[
            Conclusion("a", "Is it?", Answer("yes", "0.5"), Answer("no", "0.0")),
            Conclusion("b", "Was it?", Answer("no", ""), Answer("no", "")),
        ],
        verdict={"result": "inconclusive"},
    )


def test_page(comparison: Comparison) -> None:
    page = comparison.to_markdown()
    assert "| a | 0.5000 | 0.5000 | 0.2500 [0.2000, 0.3000] | −0.2500 |" in page
    assert "b: NaN there." in page
    assert "## The model trained without the forget set" in page
    change, stay = page.index("## Conclusions that change: 1 of 2"), page.index("## Conclusions that stay")
    assert change < page.index("Is it?") < stay < page.index("Was it?")
    assert "| a | Is it? | yes (0.5) | no (0.0) |" in page
    assert "- floor: 3 of 9: too high" in page
    assert "out of sight" not in page
    assert "| b | 0.1000 | 0.2000 | no |" in page


def test_plain_values(comparison: Comparison) -> None:
    found = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert [one["changed"] for one in found["conclusions"]] == [True, False]
    assert found["model"][0]["difference"] == -0.25
    assert found["model"][0]["ours"]["low"] == 0.2
    assert (found["checks"][2]["agrees"], found["verdict"]) == (None, {"result": "inconclusive"})


def test_parts_that_are_not_there() -> None:
    page = Comparison({"not_recomputed": "no weights"}).to_markdown()
    assert page == "Nothing was recomputed: no weights.\n"
    page = Comparison(
        {}, effects=[Effect("hidden", 0, 9, "x")], conclusions=[Conclusion("b", "?", Answer("a", ""), Answer("a", ""))]
    ).to_markdown()
    assert "None of those counted touches an example." in page
    assert "## Conclusions that change: 0 of 1\n\nNone." in page


def test_writing(comparison: Comparison, tmp_path: Path) -> None:
    comparison.write(tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "results.json").read_text()) == comparison.to_dict()
    assert comparison.to_markdown() in (tmp_path / "a" / "b" / "page.md").read_text()
    with pytest.raises(BadInput, match="cannot be made"):
        comparison.write(tmp_path / "a" / "b" / "page.md" / "c")


def test_cells() -> None:
    assert log_cells(LogRow("c", None, NONE, None, ("x",)))["notes"] == "x; why"
    assert [shown(v) for v in (None, 0.0, 12.3456789, 1e-9)] == ["-", "0.0000", "12.3457", "1.00e−09"]
