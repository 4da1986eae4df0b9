from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.reports import wording
from expunge.reports.report import ModelSummary, RunReport


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "no data"), (float("nan"), 3, "no data"), (0.0, 3, "0.000"), (0.12345, 3, "0.123"), (-0.5, 1, "−0.5"),
        (3.2e-19, 3, "3.20e−19"), (float("-inf"), 2, "−∞"), (12345.678, 1, "12\u202f345.7"), (38.0, 0, "38"),
    ],
)  # fmt: skip
def test_numbers(value: float | None, digits: int, text: str) -> None:
    assert wording.number(value, digits) == text


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 6))
def test_a_number_that_is_not_zero_is_never_printed_as_zero(value: float, digits: int) -> None:
    text = wording.number(value, digits).replace("−", "-").replace("\u202f", "")
    assert (float(text) == 0) == (value == 0)


def test_sizes_times_counts_and_ratios() -> None:
    assert [wording.size(x) for x in (None, 0, 1023, 1024, 3 * 2**30)] == [
        "no data",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 GiB",
    ]
    assert [wording.duration(x) for x in (None, 1.25, 61, 7320)] == ["no data", "1.2 s", "1 min 1 s", "2 h 2 min"]
    assert [wording.count(x) for x in (None, 0, 4231680, 2.1e14)] == [
        "no data",
        "0",
        "4\u202f231\u202f680",
        "2.10 × 10¹⁴",
    ]
    assert wording.ratio({"seconds": 1}, {"seconds": 4}, "seconds") == "0.25×"
    for other in (None, {}, {"seconds": 0}):
        assert wording.ratio({"seconds": 1}, other, "seconds") == "no data"
    assert [wording.p_value(p) for p in (None, 0.0001, 0.05)] == ["no data", "< 0.001", "0.050"]


def test_headlines(changed: Callable[..., RunReport]) -> None:
    def said(verdict: object, level: str = "exact") -> tuple[str, str, str]:
        head = wording.headline(changed(verdict=verdict, removal_level=level))
        return head.state, head.title, head.sentence

    assert said({"result": "removed", "sentence": "Removed: it is gone."}) == ("good", "Removed", "It is gone.")
    assert said({"result": "not removed", "sentence": "s"})[:2] == ("bad", "Not removed")
    assert said({"result": "inconclusive", "sentence": ""})[:2] == ("open", "Inconclusive")
    assert said(None)[:2] == ("none", "No verdict")
    assert said({"result": "not removed", "by_tests": "removed", "sentence": "x"}, "guard")[:2] == (
        "bad",
        "Hidden, not removed",
    )
    assert said({"result": "not removed", "by_tests": "not removed", "sentence": "x"}, "guard")[:2] == (
        "bad",
        "Not removed",
    )


@pytest.mark.parametrize(
    ("result", "state", "title"),
    [
        ("kept", "good", "Kept"),
        ("damaged", "bad", "Damaged"),
        ("inconclusive", "open", "Inconclusive"),
        ("not measured", "none", "Not judged"),
    ],
)
def test_retained_headlines(changed: Callable[..., RunReport], result: str, state: str, title: str) -> None:
    head = wording.retained_headline(
        changed(verdict={"result": "removed", "retained": {"result": result, "sentence": ""}})
    )
    assert (head.state, head.title) == (state, title)


def test_limits_name_what_was_not_measured_and_whether_there_was_an_oracle(changed: Callable[..., RunReport]) -> None:
    text = " ".join(wording.limits(changed()))
    assert "privleak (no data)" in text
    assert "gradient_norm (crashed)" in text
    assert "weaker evidence" not in text
    assert "weaker evidence" in " ".join(wording.limits(changed(models={"original": ModelSummary()})))
