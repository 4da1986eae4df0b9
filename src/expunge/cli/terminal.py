"""What every command prints with: results on stdout, everything else on stderr, 80 columns wide."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from expunge.errors import BadInput, Problem
from expunge.runs.progress import Progress

WIDTH = 80


def wrap(text: str, indent: str = "    ") -> str:
    """Wrap each line of a text at 80 columns, further lines indented; words that are longer stay whole."""
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        for line in text.splitlines()
    )


def say(text: str) -> None:
    """Print words for the user on stderr."""
    print(wrap(text), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print words that are the command's result on stdout."""
    print(wrap(text, ""), flush=True)


def show_markdown(text: str) -> None:
    """Print a page of Markdown on stdout, made for a terminal: its tables folded into the width, its words wrapped."""
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end - at < 2:
            show(lines[at].lstrip("#").strip() if lines[at].startswith("#") else lines[at])
            at += 1
            continue
        head, rule, *rows = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[at:end])
        plain = [[cell.replace("\\|", "|") for cell in row] for row in rows]
        for columns in _blocks(head, plain):
            numbers = [place for place, k in enumerate(columns) if rule[k].endswith(":")]
            show_table("", [head[k] for k in columns], [[row[k] for k in columns] for row in plain], numbers)
        at = end


def _blocks(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Deal the columns of a table to blocks that fit the width with cells unfolded, the first column in each."""
    # Headings may fold between words, and what stands first may fold at a third of the width.
    needs = [
        max([len(word) for word in title.split()] + [len(row[k]) for row in rows], default=0) + 3
        for k, title in enumerate(head)
    ]
    left = WIDTH - min(needs[0], WIDTH // 3)
    blocks: list[list[int]] = []
    used = left
    for k in range(1, len(head)):
        if used + needs[k] > left:
            blocks.append([0])
            used = 0
        blocks[-1].append(k)
        used += needs[k]
    return blocks or [[0]]


def paragraphs(command: Callable[..., Any]) -> str:
    """Return the docstring of a command with its lines joined, so that help is wrapped at the width of the terminal."""
    text = inspect.cleandoc(command.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def show_json(value: Any) -> None:
    """Print the command's result as JSON on stdout. What JSON cannot hold is an error, never a wrong value."""
    print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False), flush=True)


def stopped(what_now: str) -> NoReturn:
    """Leave after Ctrl-C, saying what is kept and how to go on."""
    say(f"stopped. {what_now}")
    raise typer.Exit(1)


def problems_of(error: BaseException) -> list[dict[str, str]]:
    """Return what is wrong as plain values."""
    found = error.problems if isinstance(error, BadInput) else []
    return [{"where": p.where, "what": p.what, "fix": p.fix, "severity": p.severity} for p in found]


def show_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = (), whole: bool = False
) -> None:
    """Print a table on stdout that folds its cells to fit the width.

    Args:
        title: above the table.
        columns: headings.
        rows: cells.
        numbers: columns that are aligned to the right.
        whole: keep the first column unfolded, because it is copied from.
    """
    from rich import box

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, expand=False)
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "right" if index in numbers else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=whole and index == 0)
    for row in rows:
        table.add_row(*[_escaped(cell) for cell in row])
    console = Console(width=min(WIDTH, Console().width) if sys.stdout.isatty() else WIDTH, highlight=False)
    console.print(table)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class Shown(Progress):
    """Shows a job's progress on stderr: bars on a terminal, one line per stage elsewhere.

    Args:
        warnings: whether warnings are printed.
    """

    def __init__(self, warnings: bool = True) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.warnings = warnings
        # Of several processes of one job, the first speaks for all.
        self.silent = os.environ.get("RANK", "0") != "0"
        self.bars: Bars | None = None
        self.task: TaskID | None = None
        self.title = ""
        self.began = time.perf_counter()
        if self.console.is_terminal and not self.silent:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=18), MofNCompleteColumn(),
                       TimeElapsedColumn(), TextColumn("{task.fields[detail]}"))  # fmt: skip
            self.bars = Bars(*columns, console=self.console, transient=True)

    def __enter__(self) -> Shown:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self.bars is not None:
            self.bars.stop()

    def stage(self, title: str) -> None:
        self._end()
        self.title, self.began = title, time.perf_counter()
        if self.bars is not None:
            self.task = self.bars.add_task(_escaped(title), total=None, detail="")
        elif not self.silent:
            say(f"{title} ...")

    def step(self, done: int, total: int, values: Mapping[str, float] | str = "") -> None:
        if self.bars is None or self.task is None:
            return
        shown = values if isinstance(values, str) else ", ".join(f"{k} {v:.3g}" for k, v in _telling(values).items())
        self.bars.update(self.task, completed=done, total=total, detail=_escaped(shown))

    def warn(self, problem: Problem) -> None:
        if self.warnings:
            self._line(f"warning: {problem}")

    def say(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        if self.bars is not None:
            self.console.print(wrap(text), markup=False, soft_wrap=True)
        elif not self.silent:
            say(text)

    def _end(self) -> None:
        if self.bars is not None and self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
            self._line(f"{self.title}: {time.perf_counter() - self.began:.1f} s")


def _telling(values: Mapping[str, float]) -> Mapping[str, float]:
    return {key: values[key] for key in ("loss", "learning_rate") if key in values}


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the bars, advice and warnings of libraries off the screen, so that ours can be read."""
    import warnings

    for name, value in {
        "HF_HUB_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
