from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.base import Plot
from expunge.reports.plots import MOST_POINTS, _corners, _thin, draw, draw_loss, draw_path
from expunge.reports.report import PathPoint, Training
from expunge.reports.svg import KNOWN_COLOURS

DRAW = np.random.default_rng(3)
SERIES: dict[str, dict[str, Any]] = {
    "distribution": {
        name: list(DRAW.gamma(2, 1 + k, 300)) for k, name in enumerate(("original", "unlearned", "oracle"))
    },
    "curve": {"unlearned": [(i, i**0.5) for i in range(30)], "oracle": [(i, i**0.4) for i in range(30)]},
    "roc": {"original": [(x / 300, (x / 300) ** 0.2) for x in range(301)], "unlearned": [(0, 0), (1, 1)]},
}


def plot(kind: str, series: Any = None, title: str = "Title") -> Plot:
    return Plot(kind, title, "x label", "y label", SERIES[kind] if series is None else series)  # type: ignore[arg-type]


def words(svg: str) -> str:
    return " ".join("".join(ElementTree.fromstring(svg).itertext()).split())


@pytest.mark.parametrize("kind", list(SERIES))
def test_each_kind_is_small_self_contained_and_repeatable(kind: str) -> None:
    svg = draw(plot(kind)).svg
    assert svg == draw(plot(kind)).svg
    assert len(svg) < 20_000
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert (root.get("aria-label") or "").startswith("Title")
    assert root.get("width") is None
    assert re.sub(r"http://www\.w3\.org/2000/svg", "", svg).count("http") == 0
    assert "<style" not in svg
    assert "metadata" not in svg
    assert "x label" in words(svg)


@pytest.mark.parametrize("kind", list(SERIES))
def test_ids_of_two_plots_on_one_page_never_meet(kind: str) -> None:
    few = plot(kind, {"unlearned": SERIES[kind]["unlearned"][:3]})
    a, b = draw(few, prefix="a").svg, draw(few, prefix="b").svg
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (a, b)]
    assert len(ids[0]) == len(set(ids[0]))
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r"#(a-\d+)", a)) == set(ids[0])


@pytest.mark.parametrize("kind", list(SERIES))
def test_a_model_keeps_its_colour(kind: str) -> None:
    series = {"unlearned": SERIES[kind]["unlearned"], "another": SERIES[kind]["unlearned"]}
    svg = draw(plot(kind, series), models=("original", "unlearned", "oracle", "another")).svg
    assert KNOWN_COLOURS["unlearned"] in svg
    assert KNOWN_COLOURS["original"] not in svg


@pytest.mark.parametrize("kind", list(SERIES))
def test_nothing_to_draw_says_no_data(kind: str) -> None:
    drawing = draw(plot(kind, {"unlearned": []}))
    assert "unlearned no data" in (ElementTree.fromstring(drawing.svg).get("aria-label") or "")
    ElementTree.fromstring(draw(plot(kind, {})).svg)


def test_what_cannot_be_shown_is_counted() -> None:
    assert "2 values" in draw(plot("distribution", {"oracle": [1.0, float("nan"), 2.0, float("inf")]})).note
    assert "1 value." in draw(plot("curve", {"oracle": [(0, 1), (1, float("nan"))]})).note
    assert draw(plot("distribution", {"oracle": [1.0, 2.0]})).note == ""
    outliers = [*np.linspace(0, 1, 300), 1e6]
    assert "outermost bars: " in draw(plot("distribution", {"oracle": outliers})).note


def test_medians_are_printed() -> None:
    assert "median 2 (n = 3)" in words(draw(plot("distribution", {"oracle": [1.0, 2.0, 9.0]})).svg)


def test_area_under_the_curve_is_printed() -> None:
    text = words(draw(plot("roc", {"unlearned": [(0, 0), (0, 0.5), (1, 1)]})).svg)
    assert "unlearned (0.750)" in text


@given(st.lists(st.sampled_from([0.0, 1e-300, 0.5, 3.0, 1e12, -4.0, float("nan"), float("-inf")]), max_size=6))
@settings(max_examples=5, deadline=None)
def test_any_values_can_be_drawn(values: list[float]) -> None:
    ElementTree.fromstring(draw(plot("distribution", {"unlearned": values})).svg)


@pytest.mark.parametrize(
    "text", ["$\\frac{", "<b>&amp;</b>", 'id="x" href="#y" 0.123456 url(#z)', "--> <!--", "Ω 漢字"]
)
def test_words_on_a_plot_are_only_words(text: str) -> None:
    named = Plot("curve", text, text, text, {text: [(0, 1), (1, 2)]})
    svg = draw(named, prefix=text).svg
    assert " ".join(text.split()) in words(svg)
    assert text in (ElementTree.fromstring(svg).get("aria-label") or "")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30))
def test_dropping_points_on_straight_lines_keeps_the_curve(steps: list[tuple[int, int]]) -> None:
    points = np.cumsum(np.array(steps, dtype=float), axis=0)
    kept = _corners(points)
    assert np.trapezoid(kept[:, 1], kept[:, 0]) == pytest.approx(np.trapezoid(points[:, 1], points[:, 0]))
    assert (kept[0] == points[0]).all()
    assert (kept[-1] == points[-1]).all()


def test_thinning_keeps_the_mean() -> None:
    points = np.stack([np.arange(16 * MOST_POINTS), DRAW.normal(size=16 * MOST_POINTS)], axis=1)
    thin = _thin(points)
    assert len(thin) == MOST_POINTS
    assert thin.mean(axis=0) == pytest.approx(points.mean(axis=0))


def test_path_marks_the_kept_checkpoint_and_the_target() -> None:
    path = [PathPoint(0, 0.1, 0.1), PathPoint(20, 2.0, 0.2, True), PathPoint(40, None, 0.3)]
    drawing = draw_path(
        Training(path=path, forget_target=2.2, forget_statistic="forget NLL", retain_statistic="retain NLL")
    )
    text = words(drawing.svg)
    for expected in ("kept: step 20", "step 0", "forget NLL", "retain NLL", "never knew"):
        assert expected in text
    assert "1 value" in drawing.note
    assert drawing == draw_path(
        Training(path=path, forget_target=2.2, forget_statistic="forget NLL", retain_statistic="retain NLL")
    )
    ElementTree.fromstring(draw_path(Training()).svg)


def test_loss_has_a_panel_per_term_and_stays_small() -> None:
    loss = {"forget": [(i, 1 / (1 + i)) for i in range(5000)], "retain": [(i, 0.1) for i in range(3)]}
    drawing = draw_loss(Training(loss=loss))
    assert "forget" in words(drawing.svg)
    assert "retain" in words(drawing.svg)
    assert len(drawing.svg) < 25_000
    assert "means of neighbouring steps" in drawing.note
    ElementTree.fromstring(draw_loss(Training(loss={"a": []})).svg)
