"""Several models of one request on one page: the verdict of each, what every audit said, and what told them apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from expunge.audits.base import FAMILIES, Evidence, Finding
from expunge.reports.html import page_environment
from expunge.reports.report import LEVELS, RunReport
from expunge.reports.wording import NO_DATA, Headline, State, headline, number, retained_headline
from expunge.verdict.families import by_family, decisive
from expunge.verdict.pairs import PairTest, tell_apart
from expunge.verdict.result import Row

WORDS: dict[str, tuple[State, str]] = {
    "leak": ("bad", "knows more"),
    "suppression": ("bad", "avoids it"),
    "equivalent": ("good", "like never knowing"),
    "inconclusive": ("open", "open"),
    "cannot tell": ("none", "cannot tell"),
    "numbers only": ("none", "numbers only"),
    "no data": ("none", "no data"),
    "crashed": ("bad", "crashed"),
    "not run": ("none", "not run"),
}
"""What an audit can say of a model, with its colour and the words for it."""


@dataclass(frozen=True)
class Said:
    """What one audit said of one model.

    Attributes:
        result: a key of ``WORDS``.
        statistic: of the test that says so; of several the clearest.
        numbers: that statistic of this model beside a model that never knew, in words.
        note: why there is no test, or "".
        decides: whether the verdict rests on it.
    """

    result: str
    statistic: str = ""
    numbers: str = ""
    note: str = ""
    decides: bool = False

    @property
    def state(self) -> State:
        """The colour."""
        return WORDS[self.result][0]

    @property
    def words(self) -> str:
        """The result in words."""
        return WORDS[self.result][1]


@dataclass(frozen=True)
class AuditLine:
    """One audit: its name, its family, its question, what it said of each model, and how many pairs it tells apart."""

    audit: str
    family: str
    title: str
    said: Mapping[str, Said]
    apart: int


@dataclass(frozen=True)
class ModelCard:
    """One model: name, method and removal level, both headlines, and what decided in words."""

    name: str
    method: str
    removal_level: str
    verdict: Headline
    retained: Headline
    decided: str


@dataclass(frozen=True)
class Pair:
    """Two models and what tells them apart.

    Attributes:
        first, second: their names.
        audits: the clearest test of each audit that finds them different, the clearest audit first.
        tests: how many tests there were of the two.
        otherwise: what differs beside the audits, in words.
    """

    first: str
    second: str
    audits: Sequence[PairTest]
    tests: int
    otherwise: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Models of one request side by side.

    Attributes:
        models: one card each, in the order given.
        lines: what every audit said, by family.
        pairs: every two models and what told them apart.
    """

    models: Sequence[ModelCard]
    lines: Sequence[AuditLine]
    pairs: Sequence[Pair]

    def family(self, family: str, model: str) -> Said:
        """Return what a family of audits said of a model: the worst that one of them did."""
        own = [line.said[model] for line in self.lines if line.family == family]
        order = ("leak", "suppression", "inconclusive", "equivalent", "cannot tell", "numbers only", "crashed",
                 "no data", "not run")  # fmt: skip
        ranked = sorted(own, key=lambda said: (not said.decides, order.index(said.result)))
        return ranked[0] if ranked else Said("not run")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "models": [
                {
                    "name": card.name, "method": card.method, "removal_level": card.removal_level,
                    "verdict": card.verdict.title, "retained": card.retained.title, "decided": card.decided,
                    "families": {family: self.family(family, card.name).result for family in self.families},
                }
                for card in self.models
            ],
            "audits": [
                {
                    "audit": line.audit, "family": line.family, "title": line.title, "pairs_told_apart": line.apart,
                    "said": {
                        name: {
                            "result": said.result, "statistic": said.statistic, "numbers": said.numbers,
                            "note": said.note, "decides": said.decides,
                        }
                        for name, said in line.said.items()
                    },
                }
                for line in self.lines
            ],
            "pairs": [
                {
                    "models": [pair.first, pair.second],
                    "told_apart_by": [
                        {
                            "audit": test.audit, "statistic": test.statistic, "means": list(test.means),
                            "difference": test.difference, "low": test.low, "high": test.high,
                            "margin": test.margin, "n": test.n, "units": test.units, "p": test.p,
                        }
                        for test in pair.audits
                    ],
                    "tests": pair.tests,
                    "otherwise": pair.otherwise,
                }
                for pair in self.pairs
            ],
        }  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """Why some audits have no data, each reason once."""
        silent = ("no data", "crashed")
        said = (said for line in self.lines for said in line.said.values() if said.result in silent and said.note)
        return list(dict.fromkeys(one.note for one in said))

    @property
    def families(self) -> list[str]:
        """The families of which an audit was run, in the order of a report."""
        there = {line.family for line in self.lines}
        return [*(f for f in FAMILIES if f in there), *sorted(there - FAMILIES.keys())]


def side_by_side(runs: Mapping[str, RunReport], families: Mapping[str, str]) -> SideBySide:
    """Put the reports of several models side by side.

    Args:
        runs: name -> report.
        families: audit -> family, for reports that do not say it themselves.
    """
    audits = dict.fromkeys(finding.audit for report in runs.values() for finding in report.findings)
    said = {audit: {name: _said(report, audit) for name, report in runs.items()} for audit in audits}
    tests = tell_apart({name: _evidence(report) for name, report in runs.items()})
    pairs = [_pair(a, b, runs, tests) for a, b in itertools.combinations(runs, 2)]
    apart = {audit: sum(audit == test.audit for pair in pairs for test in pair.audits) for audit in audits}
    lines = [AuditLine(a, _family(runs, a, families), _title(runs, a), said[a], apart[a]) for a in audits]
    order = list(FAMILIES)
    lines.sort(key=lambda line: order.index(line.family) if line.family in order else len(order))
    return SideBySide([_card(name, report, said) for name, report in runs.items()], lines, pairs)


def render_side_by_side(
    found: SideBySide,
    runs: Mapping[str, RunReport],
    numbers: Sequence[tuple[str, Sequence[str]]],
    warnings: Sequence[str] = (),
) -> str:
    """Render one self-contained page.

    Args:
        found: what ``side_by_side`` returned.
        runs: the same reports, for request, versions and levels.
        numbers: further rows, each a title and one text per model.
        warnings: why the models may not be comparable.

    Returns:
        HTML text; equal input gives equal text. Everything in it is escaped.
    """
    first = next(iter(runs.values()))
    levels = dict.fromkeys(card.removal_level for card in found.models)
    return (
        page_environment()
        .get_template("side_by_side.html.j2")
        .render(
            found=found,
            request=first.request,
            created=max(report.created for report in runs.values()),
            version=first.versions.get("expunge", ""),
            numbers=numbers,
            warnings=warnings,
            levels={level: LEVELS[level] for level in levels},
            families=FAMILIES,
            pairs=len(found.pairs),
            number=number,
        )
    )


def _rows(report: RunReport) -> list[Row]:
    """Return the tests of the forgotten data."""
    known = {field.name for field in fields(Row)}
    given = [{k: v for k, v in row.items() if k in known} for row in (report.verdict or {}).get("rows", ())]
    return [row for row in (Row(**one) for one in given) if row.about == "forget"]


def _said(report: RunReport, audit: str) -> Said:
    finding = next((finding for finding in report.findings if finding.audit == audit), None)
    if finding is None:
        return Said("not run")
    if finding.status != "measured":
        return Said(finding.status, note=finding.note)
    statistics = {e.statistic for e in finding.evidence}
    rows = [row for row in _rows(report) if row.statistic in statistics]
    if not rows:
        return Said("numbers only", numbers=_first_number(finding), note="gives the verdict no test")
    (found,) = by_family([replace(row, family="") for row in rows])
    row = next(row for row in rows if row.statistic == found.statistic)
    return Said(found.result, row.statistic, _against(row), row.note, _decides(report, rows, found.result))


def _decides(report: RunReport, rows: Sequence[Row], result: str) -> bool:
    clearest = decisive(_rows(report))
    if clearest is not None:
        return any(row.statistic == clearest.statistic for row in rows)
    settled = {"removed": "equivalent", "inconclusive": "inconclusive"}
    return settled.get(str((report.verdict or {}).get("result"))) == result


def _against(row: Row) -> str:
    if row.unlearned is None:
        return NO_DATA
    beside = {"oracle": "never knew", "holdout": "never seen"}.get(row.baseline, "")
    other = f", {beside} {number(row.baseline_mean)}" if beside and row.baseline_mean is not None else ""
    return f"{number(row.unlearned)}{other}"


def _first_number(finding: Finding) -> str:
    """Return the first number that tells knowing from not knowing, for audits that give the verdict no test."""
    own, oracle = finding.estimates.get("unlearned", {}), finding.estimates.get("oracle", {})
    for scalar in sorted(finding.scalars, key=lambda s: s.knowing_is == "none"):
        if (there := own.get(scalar.name)) is not None and there.value is not None:
            beside = oracle.get(scalar.name)
            other = f", never knew {number(beside.value)}" if beside is not None and beside.value is not None else ""
            return f"{scalar.title}: {number(there.value)}{other}"
    return ""


def _evidence(report: RunReport) -> list[Evidence]:
    return [replace(e, audit=finding.audit) for finding in report.findings for e in finding.evidence]


def _pair(a: str, b: str, runs: Mapping[str, RunReport], tests: Sequence[PairTest]) -> Pair:
    own = [test for test in tests if (test.first, test.second) == (a, b)]
    found: dict[str, PairTest] = {}
    for test in sorted(own, key=lambda test: abs(test.difference) / test.margin, reverse=True):
        if test.apart:
            found.setdefault(test.audit, test)
    levels = runs[a].removal_level, runs[b].removal_level
    results = tuple((runs[name].verdict or {}).get("retained", {}).get("result", "") for name in (a, b))
    otherwise = [f"removal levels {levels[0]} and {levels[1]}"] if levels[0] != levels[1] else []
    if results[0] != results[1]:
        otherwise.append(f"what had to stay: {results[0] or 'not judged'} and {results[1] or 'not judged'}")
    return Pair(a, b, list(found.values()), len(own), "; ".join(otherwise))


def _card(name: str, report: RunReport, said: Mapping[str, Mapping[str, Said]]) -> ModelCard:
    method = report.method.name if report.method else "not stated"
    return ModelCard(
        name, method, report.removal_level, headline(report), retained_headline(report), _decided(name, report, said)
    )


def _decided(name: str, report: RunReport, said: Mapping[str, Mapping[str, Said]]) -> str:
    deciding = [audit for audit, models in said.items() if models[name].decides]
    if not report.verdict:
        return "nothing: no verdict was asked for"
    if report.verdict["result"] == "removed":
        return f"all tests that can tell agree ({', '.join(deciding)})"
    if report.removal_level in ("guard", "adapter"):
        clearest = f"; clearest test: {', '.join(deciding)}" if deciding else ""
        return f"its removal level, {report.removal_level}{clearest}"
    return ", ".join(deciding) or "nothing: no test can tell"


def _family(runs: Mapping[str, RunReport], audit: str, families: Mapping[str, str]) -> str:
    stated = (r.audits[audit].family for r in runs.values() if audit in r.audits)
    return next((family for family in stated if family), families.get(audit, "behaviour"))


def _title(runs: Mapping[str, RunReport], audit: str) -> str:
    return next((r.audits[audit].title for r in runs.values() if audit in r.audits), audit.replace("_", " "))
