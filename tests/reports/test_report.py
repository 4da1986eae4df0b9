from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.base import Estimate, Evidence, Finding, Plot
from expunge.errors import BadInput
from expunge.reports.report import LEVELS, RequestSummary, RunReport, Sample, to_plain, write_text

number = st.floats() | st.none()
names = st.text(max_size=5)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def same(a: Any, b: Any) -> bool:
    """Compare with NaN equal to itself."""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@st.composite
def reports(draw: st.DrawFn) -> RunReport:
    estimates = st.builds(Estimate, number, number, number, st.integers(0, 9), st.just(0.95), names)
    values = st.dictionaries(names, st.dictionaries(names, st.floats(), max_size=2), max_size=2)
    evidence = st.builds(Evidence, names, st.sampled_from(["forget", "retain"]), values, values)
    plot = st.builds(
        Plot,
        st.just("distribution"),
        names,
        names,
        names,
        st.dictionaries(names, st.lists(st.floats(), max_size=3), max_size=2),
    )
    finding = st.builds(
        Finding,
        names,
        st.sampled_from(["measured", "no data", "crashed"]),
        estimates=st.dictionaries(names, st.dictionaries(names, estimates, max_size=2), max_size=2),
        evidence=st.lists(evidence, max_size=1),
        plots=st.lists(plot, max_size=1),
        attempted=st.dictionaries(names, plain, max_size=2),
    )
    return RunReport(
        title=draw(st.text(max_size=9)),
        created="2025-01-31",
        request=RequestSummary("r", "examples", draw(st.integers(0, 9)), draw(st.none() | st.integers(0, 9))),
        removal_level=draw(st.sampled_from(sorted(LEVELS))),
        models={},
        verdict=draw(st.none() | st.dictionaries(names, plain, max_size=3)),
        findings=draw(st.lists(finding, max_size=2)),
        samples=draw(
            st.lists(st.builds(Sample, names, names, names, names, st.dictionaries(names, names)), max_size=2)
        ),
        recipe=draw(st.dictionaries(names, plain, max_size=3)),
    )


@settings(max_examples=40, deadline=None)
@given(reports())
def test_json_round_trip_loses_nothing(report: RunReport) -> None:
    text = report.to_json()
    again = RunReport.from_json(text)
    assert again.to_json() == text
    assert same(strict(text), json.loads(again.to_json()))
    assert [f.audit for f in again.findings] == [f.audit for f in report.findings]
    for before, after in zip(report.findings, again.findings, strict=True):
        assert before.estimates.keys() == after.estimates.keys()
        for model, named in before.estimates.items():
            for name, estimate in named.items():
                assert same(estimate.value, after.estimates[model][name].value)


def test_a_full_report_comes_back_equal(report: RunReport) -> None:
    again = RunReport.from_json(report.to_json())
    assert again.training == report.training
    assert again.samples == report.samples
    assert again.models == report.models
    assert again.method == report.method
    assert again.request == report.request
    assert again.verdict == report.verdict
    assert again.cost == report.cost


def test_nan_and_infinity_survive_and_are_never_written_bare(changed: Callable[..., RunReport]) -> None:
    report = changed(findings=[], recipe={"a": float("nan"), "b": [float("inf"), -math.inf], "c": None})
    text = report.to_json()
    strict(text)
    assert "NaN" not in text
    assert "Infinity" not in text
    recipe = RunReport.from_json(text).recipe
    assert math.isnan(recipe["a"])
    assert recipe["b"] == [math.inf, -math.inf]
    assert recipe["c"] is None


def test_arrays_and_paths_become_plain() -> None:
    assert to_plain({"a": np.float32(0.5), "b": np.arange(2), "c": Path("x/y"), 3: (1, True)}) == {
        "a": 0.5, "b": [0, 1], "c": "x/y", "3": [1, True],
    }  # fmt: skip
    assert to_plain(np.float64("nan")) == {"$float": "nan"}


def test_a_value_that_json_cannot_hold_is_an_error() -> None:
    with pytest.raises(BadInput, match="object"):
        to_plain({"a": object()})


def test_an_unknown_removal_level_is_an_error(changed: Callable[..., RunReport]) -> None:
    with pytest.raises(BadInput, match="perfect"):
        changed(removal_level="perfect")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"schema": 999}', '{"schema": 1, "title": "t"}', '{"schema": 1, "x": 2}']
)
def test_what_is_not_a_report_is_bad_input(text: str) -> None:
    with pytest.raises(BadInput):
        RunReport.from_json(text)


def test_writing_replaces_the_file_and_leaves_nothing_else(report: RunReport, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.json"
    write_text(target, "old")
    report.write_json(target)
    assert [p.name for p in target.parent.iterdir()] == ["report.json"]
    assert target.read_bytes() == report.to_json().encode()


def test_run_time_efficiency_is_what_forgetting_alone_took(changed: Callable[..., RunReport]) -> None:
    cost = {
        "forgetting": {"seconds": 90.0},
        "audits while forgetting": {"seconds": 30.0},
        "proving": {"seconds": 600.0},
    }
    assert changed(cost=cost).rte == 1.5
    assert changed(cost={"proving": {"seconds": 600.0}}).rte is None
    assert changed(cost={"forgetting": {"seconds": None}}).rte is None
