from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.base import Estimate
from expunge.reports.small_plots import against_margin, whiskers

number = st.none() | st.floats()


def test_one_dot_per_model_that_has_a_value() -> None:
    svg = whiskers(
        {"a": Estimate(1.0, 0.5, 1.5), "b": Estimate(None), "c": Estimate(2.0)}, {"a": "red", "b": "blue", "c": "green"}
    )
    assert svg.count("<circle") == 2
    assert svg.count("<path") == 1
    assert "blue" not in svg


def test_nothing_to_draw_is_empty() -> None:
    assert whiskers({"a": Estimate(None)}, {"a": "red"}) == ""
    assert against_margin(None, None, None, 0.1) == ""
    assert against_margin(0.1, 0.0, 0.2, None) == ""


def test_a_difference_inside_its_margin_lies_inside_the_band() -> None:
    svg = against_margin(0.1, 0.0, 0.2, 0.4)
    band = re.search(r'<rect x="([\d.]+)" y="3" width="([\d.]+)"', svg)
    whisker = re.search(r"M([\d.]+) 13H([\d.]+)", svg)
    assert band
    assert whisker
    assert float(band[1]) < float(whisker[1]) < float(whisker[2]) < float(band[1]) + float(band[2])


@given(number, number, number, number)
def test_any_numbers_stay_inside_the_picture(
    value: float | None, low: float | None, high: float | None, margin: float | None
) -> None:
    for svg in (
        whiskers({"a": Estimate(value, low, high), "b": Estimate(0.0)}, {"a": "r", "b": "b"}),
        against_margin(value, low, high, margin),
    ):
        if svg:
            root = ElementTree.fromstring(svg)
            for circle in root.iter("circle"):
                assert 0 <= float(circle.get("cx", "nan")) <= 160
