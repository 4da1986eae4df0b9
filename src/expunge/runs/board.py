"""A leaderboard from finished runs: methods compared where they forgot equally much, over seeds."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.audits.base import Scalar
from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.reports.leaderboard import CellValue, Column, over_seeds, page, render_table, to_csv, to_markdown
from expunge.reports.pareto import Candidate, draw_pareto, pareto_front
from expunge.reports.report import to_plain
from expunge.runs.comparison import MAIN, ComparedRun, warnings_of
from expunge.runs.entries import Choice, Entry, Group, candidate, entry_of, kept, numbers_of, varied_settings, words

# Less of these is more knowledge; of everything else, more.
LESS_IS_MORE = ("nats/token", "perplexity", "bits/byte")


@dataclass(frozen=True)
class Board:
    """Methods in rows, at equal forgetting.

    Attributes:
        choice: what equal means.
        groups: every method with every choice of settings.
        chosen: one group per method: most matched seeds, then most retained knowledge.
        scalars: "audit/number" -> how to read it.
        references: name of a model to compare with -> "audit/number" -> value.
        failed: name of a run -> why there is no result.
        warnings: why the runs may not be comparable.
    """

    choice: Choice
    groups: Sequence[Group]
    chosen: Sequence[Group]
    scalars: Mapping[str, Scalar]
    references: Mapping[str, Mapping[str, float | None]]
    failed: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def keys(self) -> list[str]:
        """The numbers that have a column: the two that are compared, then the main ones that were measured."""
        main = [f"{audit}/{name}" for audit, name in MAIN]
        return [k for k in dict.fromkeys([self.choice.on, self.choice.keep, *main]) if k in self.scalars]

    @property
    def columns(self) -> list[Column]:
        """The columns of the table. Which row is best is marked for retained knowledge only, at equal forgetting."""
        numbers = [
            Column(
                key,
                self.scalars[key].title,
                "none" if key != self.choice.keep else "low" if self.less_is_more(key) else "high",
                self.scalars[key].digits,
            )
            for key in self.keys
        ]
        settings = [Column("settings", "Settings")] if any(g.settings for g in self.groups) else []
        level = [Column("matched", "Matched")] if self.choice.level is not None else []
        return [Column("method", "Method"), *settings, *level, *numbers, Column("steps", "Steps", digits=0),
                Column("verdicts", "Verdicts"), Column("seconds", "Seconds", digits=1)]  # fmt: skip

    def less_is_more(self, key: str) -> bool:
        """Say whether a model that knows more scores lower."""
        return self.scalars[key].unit in LESS_IS_MORE

    def row(self, group: Group) -> dict[str, CellValue]:
        """Return the line of a group: numbers over the seeds that count."""
        counted = group.counted
        row: dict[str, CellValue] = {"method": group.method, "settings": words(group.settings) or "default"}
        row["matched"] = f"{len(group.matched)} of {len(group.entries)}"
        for key in self.keys:
            row[key] = over_seeds([e.numbers.get(key) for e in counted])
        for fact in ("steps", "seconds"):
            row[fact] = over_seeds([e.facts.get(fact) for e in counted])
        results = [e.verdict for e in counted]
        row["verdicts"] = ", ".join(f"{results.count(r)} {r}" for r in dict.fromkeys(results))
        return row

    def rows(self) -> list[dict[str, CellValue]]:
        """Return the table: what is compared with, then methods, matched ones first, most retained first."""
        marks: list[dict[str, CellValue]] = [
            {"method": name, "settings": "", "matched": "", "verdicts": "", **numbers}
            for name, numbers in self.references.items()
        ]
        return marks + [self.row(group) for group in self.ranked()]

    def ranked(self) -> list[Group]:
        """Return one group per method in the order of the table."""
        return sorted(self.chosen, key=lambda g: (not g.matched and self.choice.level is not None, -self._kept(g)))

    def _kept(self, group: Group) -> float:
        return kept(group, self.less_is_more(self.choice.keep))

    def front(self) -> list[str]:
        """Return the names of the groups that no other beats on nearness to the level and retained knowledge."""
        candidates = [(g, c) for g in self.groups if (c := candidate(g)) is not None]
        if not candidates:
            return []
        level = self.level()
        sign = -1.0 if self.less_is_more(self.choice.keep) else 1.0
        forgetting = 1.0 if self.scalars[self.choice.on].knowing_is == "low" else -1.0
        points = [
            (forgetting * c.forget if level is None else -abs(c.forget - level), sign * c.retain) for _, c in candidates
        ]
        return [candidates[k][0].name for k in pareto_front(points)]

    def level(self) -> float | None:
        """Return the mean of the levels that the runs aimed at."""
        return over_seeds([e.level for g in self.groups for e in g.entries]).value

    def notes(self) -> list[str]:
        """Return what must be known to read the table."""
        choice, notes = self.choice, [f"warning: {w}" for w in self.warnings]
        numbers = "Means over seeds with Student's t 95 % interval."
        if choice.level is None:
            notes.append(f"{numbers} Nothing makes these methods forget equally much: do not rank them.")
        else:
            level = self.level()
            of = {"oracle": " (the oracle's)", "holdout": " (the holdout's)"}.get(str(choice.level), "")
            title = self.scalars[choice.on].title if choice.on in self.scalars else choice.on
            notes.append(
                f"{numbers} Matched: runs whose “{title}” came within {choice.tolerance:.0%} of the way from the "
                f"original's value to {'an unknown level' if level is None else f'{level:.3g}'}{of}. Where some seeds "
                "are matched, the row is about those; rows without a matched seed must not be compared on what they "
                "kept."
            )
        if len(self.groups) > len(self.chosen):
            notes.append(
                "Of each method the settings with the most matched seeds are shown, then those that kept most: chosen "
                "on the numbers that are shown, so a little in favour of methods with more settings."
            )
        notes += [f"No result: {name}: {why}" for name, why in self.failed.items()]
        broken = [e.run for g in self.groups for e in g.entries if e.facts.get("diverged")]
        notes += [f"Training broke down, the model is the last good one: {', '.join(broken)}."] if broken else []
        return notes

    def to_markdown(self) -> str:
        """Return the table as Markdown."""
        return to_markdown(self.rows(), self.columns, "Leaderboard", self.notes())

    def to_csv(self) -> str:
        """Return every method with every choice of settings as CSV."""
        return to_csv([self.row(group) for group in self.groups], self.columns)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "choice": to_plain(self.choice),
            "level": self.level(),
            "references": to_plain(self.references),
            "rows": [to_plain(self.row(group)) for group in self.ranked()],
            "all": [to_plain(self.row(group)) for group in self.groups],
            "not_beaten": self.front(),
            "runs": [
                to_plain(entry) | {"matched": entry.matched(self.choice.tolerance)}
                for group in self.groups
                for entry in group.entries
            ],
            "failed": dict(self.failed),
            "notes": self.notes(),
        }

    def to_html(self) -> str:
        """Return a page that needs nothing else: the table, the plot, and every choice of settings."""
        parts = [render_table(self.rows(), self.columns, "Leaderboard", self.notes())]
        drawn = [c for g in self.groups if (c := candidate(g)) is not None]
        if drawn:
            marks = [
                Candidate(name, forget, retain)
                for name, numbers in self.references.items()
                if (forget := numbers.get(self.choice.on)) is not None
                and (retain := numbers.get(self.choice.keep)) is not None
            ]
            on, keep = (self.scalars[key] for key in (self.choice.on, self.choice.keep))
            titles = (f"{on.title} ({on.unit})", f"{keep.title} ({keep.unit})")
            drawing = draw_pareto(drawn, self.front(), *titles, self.level(), marks)
            caption = (
                "One mark per method and settings, small ones per seed. Filled: no other is both nearer to the level "
                "and keeps more."
            )
            parts.append(
                f"<figure>{drawing.svg}<figcaption>{html.escape(caption)} {drawing.note}</figcaption></figure>"
            )
        if len(self.groups) > len(self.chosen):
            parts.append(render_table([self.row(g) for g in self.groups], self.columns, "All settings"))
        return page("Leaderboard", "\n".join(parts))


def board_of(runs: Sequence[ComparedRun], choice: Choice, failed: Mapping[str, str] | None = None) -> Board:
    """Put finished runs on a leaderboard.

    Args:
        runs: with the report of each; runs without a method (audits of a given model) have no place here.
        choice: what equal forgetting means.
        failed: runs without a result.

    Raises:
        BadInput: no run measured a statistic that the choice names, or nobody knows the level.
    """
    runs = [run for run in runs if run.report.method is not None]
    scalars = {
        f"{finding.audit}/{scalar.name}": scalar
        for run in runs
        for finding in run.report.findings
        for scalar in finding.scalars
    }
    problems = [
        Problem(option, f"'{key}' is a number that no run has", near_names(key, sorted(scalars)))
        for option, key in (("--on", choice.on), ("--keep", choice.keep))
        if runs and key not in scalars
    ]
    if problems:
        raise BadInput(problems)
    varied = varied_settings(runs)
    entries = [entry_of(run, choice, varied) for run in runs]
    if entries and choice.level is not None and all(e.level is None for e in entries):
        what = f"is {choice.level}, and no run has a value of {choice.on} for it"
        raise BadInput(Problem("--level", what, "give a number, or run with an oracle or a holdout set"))
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(f"{entry.method} {words(entry.settings)}", []).append(entry)
    every = [Group(g[0].method, g[0].settings, g, choice.tolerance) for g in groups.values()]
    less = choice.keep in scalars and scalars[choice.keep].unit in LESS_IS_MORE
    chosen = every if choice.level is None else _choose(every, less)
    references = {name: numbers_of(runs[0].report, name) for name in ("original", "oracle")} if runs else {}
    references = {name: numbers for name, numbers in references.items() if numbers}
    return Board(choice, every, chosen, scalars, references, failed or {}, warnings_of(runs))


def _choose(groups: Iterable[Group], less: bool) -> list[Group]:
    best: dict[str, Group] = {}
    for group in groups:
        other = best.get(group.method)
        if other is None or _merit(group, less) > _merit(other, less):
            best[group.method] = group
    return list(best.values())


def _merit(group: Group, less: bool) -> tuple[float, float]:
    """How well a group stands for its method: matched seeds, then what it kept; unmatched, how near it came."""
    if group.matched:
        return len(group.matched), kept(group, less)
    gaps = [abs(e.forget - e.level) for e in group.entries if e.forget is not None and e.level is not None]
    return 0, -(sum(gaps) / len(gaps)) if gaps else -math.inf
