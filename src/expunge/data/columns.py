"""Recognising which columns of a source hold what."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from expunge.data.problems import ProblemList

# Canonical name -> names by which published sets call it; the canonical name comes first.
ALIASES: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question"),
    "answer": ("answer", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "paraphrased_prompt": ("paraphrased_prompt", "paraphrased_question"),
    "paraphrased_answer": ("paraphrased_answer",),
    "perturbed_answers": ("perturbed_answers", "perturbed_answer"),
    "group": ("group",),
}
OPTIONAL = ("paraphrased_prompt", "paraphrased_answer", "perturbed_answers", "group")
# What a message about a column that is not there begins with.
NO_COLUMN = "has no column "
LAYOUTS = "question and answer, prompt and completion, messages, or text"


@dataclass(frozen=True)
class Layout:
    """How a source holds its examples.

    Attributes:
        kind: "pair" of prompt and answer, chat "messages", or raw "text".
        names: canonical name -> name in the source.
    """

    kind: Literal["pair", "messages", "text"]
    names: Mapping[str, str] = field(default_factory=dict)


def recognise(
    found: Sequence[str], source: str, problems: ProblemList, mapping: Mapping[str, str] | None = None
) -> Layout | None:
    """Decide which columns hold prompt, answer and the rest.

    Args:
        found: the columns of the source.
        source: its name, for problems.
        problems: takes whatever is wrong.
        mapping: canonical name -> name in the source, from the user; it wins over recognition.

    Returns:
        The layout, or None if there is a problem.
    """
    before = problems.count
    names: dict[str, str] = {}
    for canonical, actual in (mapping or {}).items():
        if canonical not in ALIASES:
            near = difflib.get_close_matches(canonical, ALIASES, n=1)
            fix = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(ALIASES)}"
            problems.add("columns", f"'{canonical}' is not a column that is used", fix)
        elif actual not in found:
            _missing(canonical, (actual,), found, source, problems)
        else:
            names[canonical] = actual
    if problems.count > before:
        return None
    mapped = set(names)
    for canonical, aliases in ALIASES.items():
        present = [alias for alias in aliases if alias in found and alias not in names.values()]
        if canonical in names or not present:
            continue
        if len(present) > 1:
            both = " and ".join(f"'{name}'" for name in present)
            fix = f"say which one to use: {column_option(canonical, present[0])}"
            problems.add(source, f"has {both}, which both mean the {canonical}", fix)
        else:
            names[canonical] = present[0]
    if problems.count > before:
        return None
    kind = _kind(names, mapped)
    if kind is None:
        lacking = "prompt" if "answer" in names else "answer"
        if "answer" in names or "prompt" in names:
            _missing(lacking, ALIASES[lacking], found, source, problems)
        else:
            _missing("prompt", ALIASES["prompt"], found, source, problems)
            _missing("answer", ALIASES["answer"], found, source, problems)
        return None
    used = {"pair": ("prompt", "answer"), "messages": ("messages", "answer"), "text": ("text",)}[kind]
    return Layout(kind, {name: names[name] for name in (*used, *OPTIONAL) if name in names})


def column_option(canonical: str, actual: str) -> str:
    """Write how a column's name is given, on the command line and in Python."""
    return f"--set columns.{canonical}={actual} (in Python: columns={{'{canonical}': '{actual}'}})"


def _kind(names: Mapping[str, str], mapped: set[str]) -> Literal["pair", "messages", "text"] | None:
    pair = {"prompt", "answer"} <= set(names)
    if "messages" in mapped or ("messages" in names and not mapped & {"prompt", "text"}):
        return "messages"
    if "text" in mapped and not mapped & {"prompt", "answer"}:
        return "text"
    if pair:
        return "pair"
    return "text" if "text" in names and not {"prompt", "answer"} & set(names) else None


def _missing(
    canonical: str, looked_for: Sequence[str], found: Sequence[str], source: str, problems: ProblemList
) -> None:
    """Note that a column is missing, with what is there instead."""
    quoted = " or ".join(f"'{name}'" for name in looked_for)
    what = f"{NO_COLUMN}{quoted} for the {canonical}; its columns are {', '.join(map(repr, found)) or 'none'}"
    plain = {name.strip().lower().replace(" ", "_"): name for name in found}
    near = [
        plain[match]
        for name in looked_for
        for match in difflib.get_close_matches(name.strip().lower(), plain, n=1, cutoff=0.7)
    ]
    if near:
        fix = f"rename '{near[0]}', or say so: {column_option(canonical, near[0])}"
    else:
        fix = f"use the columns {LAYOUTS}, or say which is which: {column_option(canonical, 'ITS_NAME')}"
    problems.add(source, what, fix)
