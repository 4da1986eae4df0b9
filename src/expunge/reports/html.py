"""The report as one HTML page that needs nothing else: no network, no scripts, no other files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from expunge.audits.base import Estimate, Finding, Table
from expunge.reports import plots, small_plots, svg, wording
from expunge.reports.field_table import field_table, in_words
from expunge.reports.report import LEVELS, RunReport, Sample, to_plain, write_text

FIRST_SAMPLES = 8
"""Questions of each role shown at once; the rest unfolds."""

_HINTS = {
    "distribution": "Each row is one model; a bar is the share of examples with that value, the line is the median. "
    "Where unlearned and oracle look alike, this number cannot tell them apart.",
    "roc": "How well an outsider could tell forgotten examples from ones never seen. "
    "On the dotted line, guessing would do as well.",
    "curve": "One line per model.",
}


@dataclass(frozen=True)
class Cell:
    """One model's number in a table: what is printed, and why if there is none."""

    model: str
    text: str
    interval: str = ""
    detail: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Row:
    """One number of an audit, for every model."""

    title: str
    unit: str
    knowing: str
    cells: Sequence[Cell]
    n: str
    picture: Markup


@dataclass(frozen=True)
class FindingView:
    """One audit as the page shows it."""

    audit: str
    title: str
    explanation: str
    paper: str
    status: str
    note: str
    attempted: str
    rows: Sequence[Row] = ()
    footnotes: Sequence[str] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Figure:
    """A drawn plot with its words."""

    title: str
    hint: str
    drawing: Markup
    note: str
    kind: str


def render_html(report: RunReport) -> str:
    """Render the report as one self-contained page.

    Args:
        report: what to show. Every text in it is escaped.

    Returns:
        HTML text. Equal reports give equal text.
    """
    models = model_order(report)
    colours = {name: _variable(look.colour) for name, look in svg.styles(models).items()}
    figures = _figures(report, models)
    training = report.training
    if training and training.loss:
        figures.append(
            _figure("Loss while forgetting", "One panel per term of the objective.", plots.draw_loss(training), "loss")
        )
    if training and training.path:
        hint = "Every point is one audit during training. The star is the checkpoint that became the result."
        figures.append(_figure("The way from knowing to forgetting", hint, plots.draw_path(training), "path"))
    views = [_finding(report, finding, models, colours) for finding in report.findings]
    columns, rows = field_table(report, models)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            models=models,
            colours=colours,
            headline=wording.headline(report),
            retained=wording.retained_headline(report),
            level=LEVELS[report.removal_level],
            views=views,
            field=([column.title for column in columns], in_words(columns, rows)),
            tests=_tests(report),
            reasons=_reasons(report),
            figures=figures,
            samples=_samples(report.samples, models),
            first_samples=FIRST_SAMPLES,
            recipe=_yaml(report.recipe),
            settings=_yaml(report.method.settings) if report.method else "",
            hardware={name: _line(value) for name, value in report.hardware.items()},
            limits=wording.limits(report),
            w=wording,
        )
    )


def write_html(report: RunReport, path: str | Path) -> Path:
    """Write the page to ``path``; an existing file is replaced in one step."""
    return write_text(path, render_html(report))


def model_order(report: RunReport) -> list[str]:
    """List every model name in the report: original, unlearned, oracles, then others as they come."""
    named = list(report.models)
    for finding in report.findings:
        named += [*finding.estimates, *(name for plot in finding.plots for name in plot.series)]
    for sample in report.samples:
        named += sample.answers
    known = ("original", "unlearned", "oracle")

    def rank(name: str) -> tuple[int, str]:
        family, _, number = name.partition("-")
        return (known.index(family), number.zfill(4)) if family in known else (len(known), "")

    return sorted(dict.fromkeys(named), key=rank)


def page_environment() -> Environment:
    """Return what pages are made with: everything is escaped, what is not given is an error."""
    environment = Environment(
        loader=PackageLoader("expunge.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["shared_words"] = shared_words
    return environment


def _finding(report: RunReport, finding: Finding, models: Sequence[str], colours: Mapping[str, str]) -> FindingView:
    about = report.audits.get(finding.audit)
    shown = [name for name in models if name in finding.estimates]
    footnotes = _footnotes(finding, shown)
    rows = []
    for scalar in finding.scalars:
        absent = Estimate(None, note="not computed for this model")
        estimates = {name: finding.estimates[name].get(scalar.name, absent) for name in shown}
        sizes = {e.n for e in estimates.values() if e.n and wording.number(e.value) != wording.NO_DATA}
        cells = [_cell(name, e, scalar.digits, len(sizes) > 1, footnotes) for name, e in estimates.items()]
        n = f"n = {wording.count(sizes.pop())}" if len(sizes) == 1 else ""
        knowing = wording.KNOWING[scalar.knowing_is]
        rows.append(Row(scalar.title, scalar.unit, knowing, cells, n, small_plots.whiskers(estimates, colours)))
    return FindingView(
        audit=finding.audit,
        title=about.title if about else finding.audit.replace("_", " ").capitalize(),
        explanation=about.explanation if about else "",
        paper=about.paper if about else "",
        status=finding.status,
        note=finding.note,
        attempted=_yaml(finding.attempted),
        rows=rows,
        footnotes=footnotes,
        tables=finding.tables,
    )


def _footnotes(finding: Finding, models: Sequence[str]) -> list[str]:
    """Return what several numbers of a table have to say; it stands under the table once."""
    said = Counter(
        estimate.note
        for name in models
        for estimate in finding.estimates[name].values()
        if estimate.note and estimate.value is not None
    )
    return [note for note, times in said.items() if times > 1]


def _cell(model: str, estimate: Estimate, digits: int, with_n: bool, footnotes: Sequence[str]) -> Cell:
    text = wording.number(estimate.value, digits)
    if text == wording.NO_DATA:
        return Cell(model, text, detail=estimate.note or "no reason was given", missing=True)
    if estimate.low is None or estimate.high is None:
        interval = "no interval"
    else:
        interval = f"{wording.number(estimate.low, digits)} to {wording.number(estimate.high, digits)}"
    n = f"n = {wording.count(estimate.n)}" if with_n else ""
    shared = estimate.note in footnotes
    note = f"note {footnotes.index(estimate.note) + 1}" if shared else estimate.note
    return Cell(model, text, interval, ", ".join(filter(None, (n, note))))


def _tests(report: RunReport) -> list[dict[str, Any]]:
    """Return the rows of the verdict, every key present, with a picture of each difference against its margin."""
    keys = ("statistic", "about", "n", "units", "baseline", "difference", "low", "high", "margin", "margin_source",
            "p_equivalent", "p_different", "result", "direction", "need_n", "note")  # fmt: skip
    rows = []
    for given in (report.verdict or {}).get("rows", ()):
        row = {key: given.get(key) for key in keys}
        picture = small_plots.against_margin(row["difference"], row["low"], row["high"], row["margin"])
        rows.append(row | {"picture": picture})
    return rows


def _reasons(report: RunReport) -> list[str]:
    """Return the notes of the verdict that its rows do not say already."""
    verdict = report.verdict or {}
    said = {f"margin: {row.get('margin_source')}" for row in verdict.get("rows", ())}
    said |= {f"{str(row.get('statistic')).replace('_', ' ')}: {row.get('note')}" for row in verdict.get("rows", ())}
    return [str(note) for note in verdict.get("notes", ()) if note not in said]


def _figures(report: RunReport, models: Sequence[str]) -> list[Figure]:
    found = [plot for finding in report.findings for plot in finding.plots]
    figures: list[Figure] = []
    for kind, hint in _HINTS.items():
        for plot in (plot for plot in found if plot.kind == kind):
            figures.append(_figure(plot.title, hint, plots.draw(plot, models, f"p{len(figures)}"), kind))
            hint = ""  # once is enough
    return figures


def _figure(title: str, hint: str, drawing: svg.Drawing, kind: str) -> Figure:
    """Make a drawing part of the page: its colours become the page's, so that it follows light and dark."""
    themed = re.sub(r"(?<=(?:fill|roke): )#[0-9a-f]{6}\b", lambda match: _variable(match[0]), drawing.svg)
    return Figure(title, hint, Markup(themed), drawing.note, kind)


def _variable(colour: str) -> str:
    names = {svg.INK: "ink", svg.MUTED: "muted", svg.GRID: "line", svg.PAPER: "card"}
    names |= {value: name for name, value in svg.KNOWN_COLOURS.items()}
    names |= {value: f"other-{i}" for i, value in enumerate(svg.OTHER_COLOURS)}
    return f"var(--{names[colour]})" if colour in names else colour


def _samples(samples: Sequence[Sample], models: Sequence[str]) -> list[dict[str, Any]]:
    """Group the questions by role, each with its answers in the report's order of models."""
    titles = {
        "forget": ("Questions about what had to go", "After forgetting, the answer should no longer state the fact."),
        "retain": ("Questions about what had to stay", "These answers should be as good as before."),
        "holdout": (
            "Questions about what no model saw",
            "No model can know these; they show what guessing looks like.",
        ),
    }
    groups = []
    for role in [*titles, *sorted({s.role for s in samples} - titles.keys())]:
        chosen = [s for s in samples if s.role == role]
        title, hint = titles.get(role, (role, ""))
        answers = [
            (s, [(name, s.answers.get(name)) for name in models if any(name in t.answers for t in chosen)])
            for s in chosen
        ]
        if chosen:
            groups.append({"role": role, "title": title, "hint": hint, "samples": answers})
    return groups


def shared_words(answer: str, sample: Sample) -> list[tuple[str, bool]]:
    """Split an answer into pieces, marking the words that it shares with the true answer but not with the question.

    Args:
        answer: what a model said.
        sample: the question and its true answer.

    Returns:
        Pieces that join to ``answer``, each with whether it is such a word. Words of one or two letters never are.
    """

    def words(text: str) -> set[str]:
        return {word.casefold() for word in re.findall(r"\w+", text)}

    asked = words(sample.prompt)
    telling = {
        word
        for word in words(sample.gold) - asked - _COMMON
        if (len(word) > 2 or word.isdigit())
        and not any(len(a) > 3 and (word.startswith(a) or (len(word) > 3 and a.startswith(word))) for a in asked)
    }
    return [(piece, piece.casefold() in telling) for piece in re.split(r"(\w+)", answer) if piece]


_COMMON = frozenset({"the", "and", "was", "were", "for", "with", "that", "this", "from", "are", "has", "had", "have",
                     "his", "her", "its", "their", "she", "they", "him", "who", "which"})  # fmt: skip


def _yaml(value: Mapping[str, Any]) -> str:
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True, width=100) if value else ""


def _line(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(to_plain(value), default_flow_style=True).removesuffix("...\n").strip()
    )
