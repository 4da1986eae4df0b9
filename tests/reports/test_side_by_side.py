from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from expunge.audits.base import Estimate, Evidence, Finding, Scalar
from expunge.reports.report import AuditSummary, MethodSummary, ModelSummary, RequestSummary, RunReport
from expunge.reports.side_by_side import SideBySide, render_side_by_side, side_by_side
from expunge.verdict import decide

HOSTILE = "<script>alert('x')</script>"
FAMILY = {"probability": "behaviour", "concept_vectors": "parametric", "relearning": "adversarial"}


def evidence(level: float, statistic: str, audit: str) -> Evidence:
    def around(mean: float, shift: int) -> dict[str, float]:
        return {f"x{i}": mean + 0.01 * ((i * 7 + shift) % 5 - 2) for i in range(30)}

    values = {"unlearned": around(level, 1), "original": around(0.9, 2), "oracle": around(0.1, 3)}
    return Evidence(statistic, "forget", values, audit=audit, family=FAMILY[audit])


def report(asked: float, opened: float | None, level: str = "approximate", name: str = "npo") -> RunReport:
    """A model that answers with one probability, and of whose trace so much is left; None cannot be opened."""
    found = [evidence(asked, "answer", "probability")]
    findings = [Finding("probability", evidence=found[:])]
    if opened is None:
        findings.append(Finding("concept_vectors", "no data", note="it offers no weights"))
    else:
        found.append(evidence(opened, "trace", "concept_vectors"))
        findings.append(Finding("concept_vectors", evidence=found[1:]))
    probe = {"unlearned": {"read": Estimate(0.7)}, "oracle": {"read": Estimate(0.2)}}
    findings.append(Finding("linear_probe", scalars=[Scalar("read", "Tokens read", "share", "high")], estimates=probe))
    return RunReport(
        title=name, created="2025-01-31", request=RequestSummary("people", "entity", 30, fingerprint="abc"),
        removal_level=level, models={"unlearned": ModelSummary()}, findings=findings, method=MethodSummary(name),
        verdict=decide(found, removal_level=level).to_dict(),
        audits={audit: AuditSummary(f"Question of {audit}?", family=family) for audit, family in FAMILY.items()},
    )  # fmt: skip


@pytest.fixture
def runs() -> dict[str, RunReport]:
    return {
        "guarded": report(0.1, None, "guard", "uld"),
        "hidden": report(0.1, 0.8, name="grad_diff"),
        "retrained": report(0.1, 0.1, "exact", "retrain"),
        "broken": report(-0.6, 0.1),
    }


@pytest.fixture
def found(runs: dict[str, RunReport]) -> SideBySide:
    return side_by_side(runs, {"linear_probe": "parametric"})


def test_each_model_keeps_its_verdict_and_what_decided_it(found: SideBySide) -> None:
    cards = {card.name: card for card in found.models}
    assert cards["guarded"].verdict.title == "Hidden, not removed"
    assert cards["guarded"].decided == "its removal level, guard"
    assert cards["hidden"].verdict.title == "Not removed"
    assert cards["hidden"].decided == "concept_vectors"
    assert cards["retrained"].verdict.title == "Removed"
    assert cards["retrained"].decided == "all tests that can tell agree (probability, concept_vectors)"
    assert cards["broken"].decided == "probability"


def test_what_an_audit_said_is_in_words_with_its_numbers(found: SideBySide) -> None:
    lines = {line.audit: line for line in found.lines}
    assert [line.family for line in found.lines] == ["behaviour", "parametric", "parametric"]
    leak = lines["concept_vectors"].said["hidden"]
    assert (leak.words, leak.numbers, leak.decides) == ("knows more", "0.800, never knew 0.100", True)
    assert lines["concept_vectors"].said["guarded"].words == "no data"
    assert lines["probability"].said["broken"].words == "avoids it"
    assert lines["linear_probe"].said["hidden"].numbers == "Tokens read: 0.700, never knew 0.200"
    assert lines["linear_probe"].title == "linear probe"


def test_pairs_name_the_audits_whose_values_differ_between_the_two(found: SideBySide) -> None:
    pairs = {(pair.first, pair.second): pair for pair in found.pairs}
    assert len(pairs) == 6
    (trace,) = pairs["hidden", "retrained"].audits
    assert (trace.audit, trace.statistic) == ("concept_vectors", "trace")
    assert trace.means == pytest.approx((0.8, 0.1))
    assert trace.difference == pytest.approx(0.7)
    assert pairs["hidden", "retrained"].tests == 2
    assert pairs["guarded", "hidden"].audits == []
    assert pairs["guarded", "hidden"].tests == 1
    assert pairs["guarded", "hidden"].otherwise == "removal levels guard and approximate"
    assert [test.audit for test in pairs["retrained", "broken"].audits] == ["probability"]
    assert [test.audit for test in pairs["hidden", "broken"].audits] == ["concept_vectors", "probability"]
    assert {line.audit: line.apart for line in found.lines} == {
        "probability": 3, "concept_vectors": 2, "linear_probe": 0,
    }  # fmt: skip


def test_two_models_that_both_leak_are_told_apart_by_how_much() -> None:
    runs = {"more": report(0.9, None), "less": report(0.45, None), "as_much": report(0.46, None)}
    pairs = {(pair.first, pair.second): pair for pair in side_by_side(runs, {}).pairs}
    assert all(run.verdict is not None and run.verdict["result"] == "not removed" for run in runs.values())
    assert [test.audit for test in pairs["more", "less"].audits] == ["probability"]
    assert pairs["less", "as_much"].audits == []


def test_a_family_says_the_worst_and_plain_values_hold_everything(found: SideBySide) -> None:
    assert found.family("parametric", "hidden").result == "leak"
    assert found.family("parametric", "guarded").result == "numbers only"
    assert found.family("adversarial", "hidden").result == "not run"
    plain = found.to_dict()
    assert plain["models"][1]["families"] == {"behaviour": "equivalent", "parametric": "leak"}
    assert plain["audits"][1]["said"]["hidden"]["decides"] is True
    assert plain["pairs"][0]["models"] == ["guarded", "hidden"]
    told = plain["pairs"][3]["told_apart_by"][0]
    assert (told["audit"], told["n"], told["units"]) == ("concept_vectors", 30, "examples")
    assert told["low"] < told["difference"] < told["high"]


class Tags(HTMLParser):
    """Checks that tags close in order and counts what is run or loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.loaded.append(tag)
        if tag not in ("meta", "br", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_loads_nothing_and_escapes_everything(runs: dict[str, RunReport]) -> None:
    named = {f"{HOSTILE}{name}": one for name, one in runs.items()}
    found = side_by_side(named, {})
    text = render_side_by_side(found, named, [(HOSTILE, [HOSTILE] * 4)], [HOSTILE])
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert tags.loaded == []
    assert HOSTILE not in text
    assert not re.search(r"(src|href)=\"(?!#)|url\(|@import|://", text)
    assert text == render_side_by_side(found, named, [(HOSTILE, [HOSTILE] * 4)], [HOSTILE])
    assert text.count("it offers no weights") == 1
    for words in (
        "note 1",
        "knows more",
        "avoids it",
        "like never knowing",
        "Hidden, not removed",
        "Compare with care",
    ):
        assert words in text


def test_reports_of_before_have_no_families_and_still_compare(runs: dict[str, RunReport]) -> None:
    old = dict(runs)
    for one in old.values():
        assert one.verdict is not None
        for row in one.verdict["rows"]:
            del row["audit"], row["family"]
        one.audits["concept_vectors"].__dict__["family"] = ""
    found = side_by_side(old, {"concept_vectors": "parametric"})
    assert {line.audit: line.family for line in found.lines}["concept_vectors"] == "parametric"
    assert found.models[1].decided == "concept_vectors"
