from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.base import Estimate
from expunge.reports.leaderboard import CellValue, Column, over_seeds, render_table, to_csv, to_markdown

COLUMNS = [
    Column("method", "Method"),
    Column("quality", "Quality", "high"),
    Column("loss", "Loss", "low"),
    Column("n", "Seeds"),
]
ROWS: list[dict[str, CellValue]] = [
    {"method": "npo", "quality": Estimate(0.6, 0.5, 0.7, 3), "loss": 2.0, "n": 3},
    {"method": "<b>x|y</b>", "quality": Estimate(0.4, 0.1, 0.7, 3), "loss": 1.0, "n": 3},
    {"method": "none", "quality": Estimate(None), "loss": float("nan")},
]


def test_html_escapes_and_marks_the_best() -> None:
    text = render_table(ROWS, COLUMNS, "T & <t>", ["note <n>"])
    assert "T &amp; &lt;t&gt;" in text
    assert "note &lt;n&gt;" in text
    assert "&lt;b&gt;x|y&lt;/b&gt;" in text
    assert text.count("<b>") == 2
    assert "<b>0.600</b>" in text
    assert "<b>1.000</b>" in text
    assert "[0.500, 0.700]" in text
    assert text.count("no data") == 3


def test_markdown_rows_all_have_the_same_cells() -> None:
    lines = to_markdown(ROWS, COLUMNS, "Title", ["a\nnote"]).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    assert {line.replace("\\|", "").count("|") for line in table} == {5}
    assert "**0.600** [0.500, 0.700]" in table[2]
    assert table[4].count("no data") == 3
    assert lines[0] == "## Title"
    assert lines[-1] == "a note"


def test_csv_keeps_full_precision_and_leaves_missing_empty() -> None:
    rows = list(
        csv.DictReader(io.StringIO(to_csv([{"method": "a", "quality": Estimate(1 / 3, 0.1, 0.5, 4)}, *ROWS], COLUMNS)))
    )
    assert float(rows[0]["quality"]) == 1 / 3
    assert (rows[0]["quality_low"], rows[0]["quality_n"]) == ("0.1", "4")
    assert rows[0]["loss"] == ""
    assert (rows[3]["quality"], rows[3]["loss"]) == ("", "")
    assert rows[2]["method"] == "<b>x|y</b>"


def test_over_seeds_against_a_worked_example() -> None:
    # 1, 2, 3: mean 2, standard error 1/sqrt(3), t(0.975, 2) = 4.3027
    found = over_seeds([1, 2, 3])
    assert found.value == pytest.approx(2)
    assert found.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.n == 3


def test_over_seeds_without_data() -> None:
    assert over_seeds([]).value is None
    assert over_seeds([None, float("nan")]).value is None
    one = over_seeds([0.5, None])
    assert (one.value, one.low, one.n) == (0.5, None, 1)
    assert one.note == "1 of 2 seeds gave no value"


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_the_interval_over_seeds_holds_the_mean_and_ignores_order(values: list[float]) -> None:
    found = over_seeds(values)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high  # type: ignore[operator]
    assert over_seeds(values[::-1]) == found
