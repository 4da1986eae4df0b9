"""The table of all reproductions, made from their results, so that the page never says other than what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem

_NEEDED = ("name", "title", "paper", "claim", "holds", "checks", "measured", "seeds", "minutes", "quick", "facts")


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Read the results in a folder, sorted by name.

    Args:
        folder: holds ``<name>.json`` files, each what ``expunge reproduce <name> --json`` prints.

    Raises:
        BadInput: no results there, or files that are none; all of them are named.
    """
    files = sorted(Path(folder).glob("*.json"))
    problems: list[Problem] = []
    found: list[dict[str, Any]] = []
    for file in files:
        fix = f"write it again with `expunge reproduce {file.stem} --json`"
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            problems.append(Problem(str(file), f"cannot be read: {error}", fix))
            continue
        missing = [key for key in _NEEDED if not isinstance(value, dict) or key not in value]
        if missing:
            problems.append(Problem(str(file), f"is no result of a reproduction: has no {', '.join(missing)}", fix))
        else:
            found.append(value)
    if not files:
        problems.append(Problem(str(folder), "holds no *.json", "give the folder of the results"))
    if problems:
        raise BadInput(problems)
    return sorted(found, key=lambda result: str(result["name"]))


def to_markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a row per reproduction, then the checks and numbers of each, as GitHub Markdown."""
    lines = [
        "| reproduction | paper | claim | holds here | seeds | minutes |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for result in results:
        lines.append(
            _row(
                f"[{result['name']}](#{result['name']})",
                result["paper"],
                result["claim"],
                _holds(result),
                str(len(result["seeds"])),
                f"{result['minutes']:.1f}",
            )
        )
    for result in results:
        lines += ["", *_section(result)]
    return "\n".join(lines) + "\n"


def _holds(result: Mapping[str, Any]) -> str:
    checks = result["checks"]
    held = sum(bool(check["holds"]) for check in checks)
    return "yes" if held == len(checks) else f"{held} of {len(checks)} checks" if held else "no"


def _section(result: Mapping[str, Any]) -> list[str]:
    facts = result["facts"]
    hardware = facts.get("hardware", {})
    where = f"{hardware.get('cores', '?')} cores ({hardware.get('processor', '?')})"
    accelerators = ", ".join(hardware.get("accelerators", ())) or "no GPU"
    seeds = ", ".join(map(str, result["seeds"]))
    lines = [
        f"### {result['name']}",
        "",
        f"{result['paper']}. {result['claim']}",
        "",
        f"`{facts['command']}`, {str(facts['date'])[:10]}, commit {facts['commit'] or 'unknown'}, seeds {seeds}, "
        f"{where}, {accelerators}, {hardware.get('threads', '?')} thread(s), {result['minutes']:.1f} minutes.",
    ]
    if result["quick"]:
        lines += ["", "The quick version: not to be quoted."]
    lines.append("")
    for check in result["checks"]:
        detail = check["detail"]
        said = "Holds" if check["holds"] else "Does not hold"
        lines.append(f"- **{said}**: {check['claim']}. {detail[:1].upper()}{detail[1:]}.")
    lines += ["", "| measured | mean | 95 % interval | seeds |", "| --- | ---: | ---: | ---: |"]
    for key, number in result["measured"].items():
        low, high = number["low"], number["high"]
        interval = "-" if low is None else f"{low:.4g} to {high:.4g}"
        value = "no data" if number["mean"] is None else f"{number['mean']:.4g}"
        lines.append(_row(f"`{key}`", value, interval, str(number["n"])))
    return lines


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
