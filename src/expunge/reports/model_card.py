"""The model card that lies beside the weights, in the format of the Hugging Face hub: YAML front matter, then text."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from expunge.audits.base import Estimate
from expunge.reports import wording
from expunge.reports.report import LEVELS, RunReport, to_plain, write_text
from expunge.tasks.storage import CARD, stored_settings


def render_model_card(report: RunReport, note: str = "") -> str:
    """Return the model card of the unlearned model.

    Args:
        report: what happened. The card is about the model named "unlearned".
        note: what the folder says of itself to whoever loads it; Markdown of ours.

    Returns:
        Markdown with YAML front matter. Text from the request and the models never becomes markup.
    """
    verdict, retained = wording.headline(report), wording.retained_headline(report)
    method = report.method
    lines = [
        "---",
        yaml.safe_dump(_front_matter(report), sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {_plain(report.title)}",
        "",
        "This model was made by deleting data from another one. What that achieved, and how it was tested:",
        "",
        "| | |",
        "| --- | --- |",
        f"| **Is the data gone?** | **{_plain(verdict.title)}.** {_plain(verdict.sentence)} |",
        f"| **Is everything else still there?** | **{_plain(retained.title)}.** {_plain(retained.sentence)} |",
        f"| **Removal level** | **{report.removal_level}.** {LEVELS[report.removal_level]} |",
        f"| **Method** | {_plain(_method(report))} |",
        f"| **Made from** | {_model(report, 'original')} |",
        f"| **Weights** | {_model(report, 'unlearned')} |",
        f"| **Request** | {_request(report)} |",
        f"| **Date** | {_plain(report.created)} |",
        "",
        *(["## How to load it", "", note, ""] if note else []),
        "## Numbers",
        "",
        *_numbers(report),
        "",
        "## What this does not prove",
        "",
        *(f"- {_plain(item)}" for item in wording.limits(report)),
        "",
        "## How to run it again",
        "",
        "Save the recipe as `recipe.yaml`, with its paths as on your machine:",
        "",
        *_fenced(yaml.safe_dump(to_plain(report.recipe), sort_keys=False, allow_unicode=True) if report.recipe else ""),
        "",
        *(
            ["Settings of the method, all resolved:", "", *_fenced(_dump(method.settings)), ""]
            if method and method.settings
            else []
        ),
        f"Versions: {_plain(', '.join(f'{k} {v}' for k, v in report.versions.items())) or wording.NO_DATA}. "
        f"Seeds: {_plain(', '.join(f'{k} {v}' for k, v in report.seeds.items())) or wording.NO_DATA}.",
        "",
        "The full report is in `report.html`, and as data in `report.json`, of the run that made this model.",
        "",
    ]
    return "\n".join(lines)


def write_model_card(report: RunReport, folder: str | Path) -> Path:
    """Write the model card as ``README.md`` into the model's folder and return its path."""
    note = str(stored_settings(Path(folder)).get("note", ""))
    return write_text(Path(folder) / CARD, render_model_card(report, note))


def _front_matter(report: RunReport) -> dict[str, Any]:
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["machine-unlearning", "expunge"]}
    original = report.models.get("original")
    if original and _on_hub(original.path):  # the hub accepts only its own names here
        front["base_model"] = original.path
    if report.method:
        front["tags"].append(_line(report.method.name))
    front["expunge"] = {
        "removal_level": report.removal_level,
        "verdict": _line(str((report.verdict or {}).get("result") or wording.NO_DATA)),
        "retained": _line(str(((report.verdict or {}).get("retained") or {}).get("result") or wording.NO_DATA)),
        "method": _line(report.method.name) if report.method else None,
        "request": _line(report.request.fingerprint),
        "forget_examples": report.request.forget,
    }
    return front


def _on_hub(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) is not None


def _method(report: RunReport) -> str:
    if report.method is None:
        return "not stated"
    return f"{report.method.name} ({report.method.paper})" if report.method.paper else report.method.name


def _model(report: RunReport, name: str) -> str:
    model = report.models.get(name)
    if model is None:
        return wording.NO_DATA
    size = f", {wording.count(model.parameters)} parameters" if model.parameters is not None else ""
    path = model.path if _on_hub(model.path) else Path(model.path).name  # a published card tells nothing of the disk
    return f"{_plain(path) or 'path not stated'}{size}, SHA-256 {_plain(model.sha256) or wording.NO_DATA}"


def _request(report: RunReport) -> str:
    asked = report.request
    given = [f"{wording.count(asked.forget)} examples to forget"]
    given += [
        f"{wording.count(n)} {what}"
        for n, what in ((asked.retain, "to keep"), (asked.holdout, "never seen"))
        if n is not None
    ]
    return _plain(
        f"{asked.name} ({asked.scenario}): {', '.join(given)}; fingerprint {asked.fingerprint or wording.NO_DATA}"
    )


def _numbers(report: RunReport) -> list[str]:
    """Table of every measured number for original, unlearned and the first oracle."""
    names = ("original", "unlearned", "oracle")
    lines = ["| Measure | original | unlearned | oracle | |", "| --- | ---: | ---: | ---: | --- |"]
    for finding in report.findings:
        for scalar in finding.scalars if finding.status == "measured" else ():
            cells = [_cell(finding.estimates.get(name, {}).get(scalar.name), scalar.digits) for name in names]
            title = _plain(f"{scalar.title} ({scalar.unit})")
            lines.append(f"| {title} | {' | '.join(cells)} | {wording.KNOWING[scalar.knowing_is]} |")
    if len(lines) == 2:
        return ["No data: no audit measured anything."]
    return [*lines, "", "In brackets: 95 % intervals, unless the report says otherwise. The oracle never saw the data."]


def _cell(estimate: Estimate | None, digits: int) -> str:
    if estimate is None or estimate.value is None or math.isnan(estimate.value):
        return wording.NO_DATA
    text = wording.number(estimate.value, digits)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{wording.number(estimate.low, digits)}, {wording.number(estimate.high, digits)}]"


def _dump(value: Any) -> str:
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)


def _fenced(text: str) -> list[str]:
    """Fence a block so that no run of backticks in it can end it."""
    if not text:
        return ["No data."]
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return [f"{fence}yaml", text.rstrip("\n"), fence]


def _line(text: str) -> str:
    """Make one line: the hub's readers look for the end of the front matter line by line."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """Make one line of Markdown that shows the text as it is."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", _line(text))
