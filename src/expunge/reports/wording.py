"""The words and number forms that the page, the model card and the tables share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from expunge.reports.report import LEVELS, RunReport

State = Literal["good", "bad", "open", "none"]

NO_DATA = "no data"

MODEL_ROLES = {"original": "before", "unlearned": "after", "oracle": "never knew", "holdout": "never seen"}

KNOWING = {
    "high": "higher means that it knows more",
    "low": "lower means that it knows more",
    "none": "does not measure knowing",
}

DIRECTIONS = {"leak": "knows more", "suppression": "worse than not knowing"}

STAGES = {
    "forgetting": "Forgetting",
    "proving": "Proving (audits)",
    "retraining": "Retraining without the data",
}


@dataclass(frozen=True)
class Headline:
    """One verdict as a reader meets it.

    Attributes:
        state: "good", "bad", "open" (not decided) or "none" (nothing to decide with); decides colour and sign.
        title: two or three words.
        sentence: the verdict's own sentence.
    """

    state: State
    title: str
    sentence: str


def headline(report: RunReport) -> Headline:
    """Say whether the data is gone. A guard is never said to have removed anything from the weights."""
    if not report.verdict:
        return Headline("none", "No verdict", "No verdict was asked for, or there was nothing to compare with.")
    result = str(report.verdict.get("result", ""))
    sentence = _after(result, str(report.verdict.get("sentence", "")))
    if report.removal_level in ("guard", "adapter") and result == "removed":
        sentence = f"A {report.removal_level} hides the data; the weights under it still hold it. {sentence}"
    if report.removal_level in ("guard", "adapter") and report.verdict.get("by_tests", result) == "removed":
        return Headline("bad", "Hidden, not removed", sentence)
    states: dict[str, tuple[State, str]] = {
        "removed": ("good", "Removed"),
        "not removed": ("bad", "Not removed"),
        "inconclusive": ("open", "Inconclusive"),
        "no data": ("none", "No verdict"),
    }
    state, title = states.get(result, ("none", result.capitalize() or "No verdict"))
    return Headline(state, title, sentence)


def retained_headline(report: RunReport) -> Headline:
    """Say whether the knowledge that had to stay is still there."""
    retained = (report.verdict or {}).get("retained") or {}
    result, sentence = str(retained.get("result", "")), str(retained.get("sentence", ""))
    states: dict[str, tuple[State, str]] = {
        "kept": ("good", "Kept"),
        "damaged": ("bad", "Damaged"),
        "inconclusive": ("open", "Inconclusive"),
    }
    if not result or result == "not measured":
        words = _after(result, sentence) or "No audit gave evidence about examples to keep."
        return Headline("none", "Not judged", words)
    state, title = states.get(result, ("none", result.capitalize()))
    return Headline(state, title, _after(result, sentence))


def _after(result: str, sentence: str) -> str:
    """Drop the result that a sentence opens with, where it stands under a heading that says the same."""
    opening = f"{result}: ".casefold()
    rest = sentence[len(opening) :] if sentence.casefold().startswith(opening) else sentence
    return rest[:1].upper() + rest[1:]


def limits(report: RunReport) -> list[str]:
    """List what this report does not prove, from what was and was not done."""
    named = [f for f in report.findings if f.status != "measured"]
    said = [LEVELS[report.removal_level]]
    if not any(name.split("-")[0] == "oracle" for name in report.models):
        said.append(
            "No model that never knew the data was available, so the comparison is with examples that the model "
            "never saw (or with nothing, where there are none). That is weaker evidence."
        )
    said.append(
        "It speaks of the examples in the request and of the questions listed here. An attack that was not tried "
        "may still find something, and the same facts may be stated in other data that was not in the request."
    )
    if named:
        said.append(f"Not measured: {', '.join(f'{f.audit} ({f.status})' for f in named)}.")
    said.append(
        "It covers the weights named by their hash. Copies, backups and earlier checkpoints are not touched by it."
    )
    return said


def number(value: float | None, digits: int = 3) -> str:
    """Write a number for people: ``digits`` decimals, exponent where that would say nothing, "no data" for none."""
    if value is None or math.isnan(value):
        return NO_DATA
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and (abs(value) <= 0.5 * 10**-digits or abs(value) >= 1e7):
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−").replace(",", "\u202f")


def p_value(value: float | None) -> str:
    """Write a p value; below 0.001 only that it is."""
    return NO_DATA if value is None or math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """Write a count with a thin space between thousands, or in powers of ten from ten million on."""
    if value is None:
        return NO_DATA
    if abs(value) < 1e7:
        return f"{value:,.0f}".replace(",", "\u202f")
    exponent = math.floor(math.log10(abs(value)))
    return f"{value / 10**exponent:.2f} × 10{str(exponent).translate(str.maketrans('0123456789', '⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def size(value: float | None) -> str:
    """Write bytes in the largest binary unit that leaves at least one."""
    if value is None:
        return NO_DATA
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    power = min(len(units) - 1, max(0, int(math.log2(value) // 10)) if value >= 1 else 0)
    return f"{value / 1024**power:.{0 if power == 0 else 1}f} {units[power]}"


def duration(value: float | None) -> str:
    """Write seconds as hours, minutes and seconds."""
    if value is None:
        return NO_DATA
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def ratio(account: Mapping[str, Any], other: Mapping[str, Any] | None, key: str) -> str:
    """Write one account's ``key`` as a multiple of the other's; "no data" where either is missing or the other is 0."""
    if not other or not other.get(key) or account.get(key) is None:
        return NO_DATA
    times = float(account[key]) / float(other[key])
    return f"{times:.2f}×" if times >= 0.01 or times == 0 else f"{times:.1g}×"


def model_role(name: str) -> str:
    """Say a model's part in the comparison, such as "after" for "unlearned"; "" where it has none."""
    return MODEL_ROLES.get(name) or MODEL_ROLES.get(name.split("-")[0], "")


def model_title(name: str) -> str:
    """Name a model with its part in the comparison, such as "unlearned (after)"."""
    return f"{name} ({model_role(name)})" if model_role(name) else name


def result_state(result: str | None) -> State:
    """Say how the result of one test is coloured. Words that are not known stay neutral."""
    states: dict[str, State] = {
        "equivalent": "good",
        "kept": "good",
        "different": "bad",
        "damaged": "bad",
        "inconclusive": "open",
    }
    return states.get(result or "", "none")
