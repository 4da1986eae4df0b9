"""Reading examples from wherever they are into the columns that the rest of Expunge uses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow  # type: ignore[import-untyped]
from datasets import Dataset

from expunge.data.columns import OPTIONAL, Layout, recognise
from expunge.data.problems import ProblemList
from expunge.data.sources import IN_MEMORY, Source, read_rows
from expunge.data.text_files import Row
from expunge.errors import BadInput
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE, unit_of
from expunge.requests.request import example_id

Duplicates = Literal["refuse", "drop"]
RESERVED = ("id", "prompt", "answer", "messages", *OPTIONAL, SOURCE_FILE, SOURCE_LINE)
MESSAGES_FIX = 'write a list such as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
LIST_FIX = 'write a list of texts, such as ["...", "..."]'


def read_examples(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    limit: int | None = None,
    split: str | None = None,
    role: str = "examples",
) -> Dataset:
    """Read language examples.

    Args:
        source: a file (JSON lines, a JSON list, CSV, TSV, Parquet; ``.json`` may hold either kind), a folder saved by
            ``Dataset.save_to_disk``, a folder of data files, a ``Dataset``, or, where no such path exists, a dataset
            on the hub by ``owner/name`` or ``owner/name:config``.
        columns: canonical name -> name in the source, where they are not recognised by themselves. Recognised are
            question/answer, prompt/completion, messages (the last assistant turn is the answer), text, and
            paraphrased_question, paraphrased_answer, perturbed_answer, group.
        duplicates: "refuse" examples that say the same, or "drop" all but the first.
        limit: read the first so many rows only.
        split: which split, of a source that has several.
        role: what the examples are for; named in problems.

    Returns:
        A dataset with the columns ``id`` (from the content, so equal in every order and format), ``prompt``,
        ``answer``, where there are any ``messages`` (turns before the answer), ``paraphrased_prompt``,
        ``paraphrased_answer``, ``perturbed_answers`` (list of texts) and ``group``, then ``source_file`` and
        ``source_line``, then all other columns as they were. One of those that bears a name used here is kept with
        ``source_`` before its name; an ``id`` that equals ours is not kept twice.

    Raises:
        BadInput: all problems of the source at once, with file, line, field and fix.
    """
    examples, problems = try_read_examples(
        source, columns=columns, duplicates=duplicates, limit=limit, split=split, role=role
    )
    if problems:
        raise BadInput(problems.all())
    return examples


def try_read_examples(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    limit: int | None = None,
    split: str | None = None,
    role: str = "examples",
) -> tuple[Dataset | None, ProblemList]:
    """Read as ``read_examples`` does, and return (examples or None, problems) instead of raising."""
    problems = ProblemList(role)
    if duplicates not in ("refuse", "drop"):
        problems.add("duplicates", f"is {duplicates!r}", "use 'refuse' or 'drop'")
    if limit is not None and limit < 1:
        problems.add("limit", f"is {limit}", "give a number of examples of at least 1, or leave it out")
    if problems:
        return None, problems
    given = str(source) if isinstance(source, str | Path) else IN_MEMORY
    rows = read_rows(source, problems, limit=limit, split=split)
    if not rows:
        if not problems:
            problems.add(given, "holds no examples", "give at least one example")
        return None, problems
    name = (
        rows[0].source
        if len({row.source for row in rows}) == 1
        else str(source)
        if isinstance(source, str | Path)
        else IN_MEMORY
    )
    found = list(dict.fromkeys(column for row in rows for column in row.values))
    layout = recognise(found, name, problems, columns)
    if layout is None:
        return None, problems
    records: list[dict[str, Any]] = []
    first: dict[str, Row] = {}
    for row in rows:
        record = _canonical(row, layout, problems)
        if record is None:
            continue
        same = first.setdefault(record["id"], row)
        if same is row:
            records.append(record)
        elif duplicates == "refuse":
            where = f"{unit_of(same.source)} {same.line}"
            where = where if same.source == row.source else f"{same.source}, {where}"
            fix = "remove one of them, or drop repeats: --duplicates drop (in Python: duplicates='drop')"
            problems.add(row.source, f"says the same as {where}", fix, line=row.line)
    columns_read = {key: [record[key] for record in records] for key in (records[0] if records else ())}
    kept = _carried(list(first.values()), columns_read, found, layout)
    examples = _dataset({**columns_read, **kept}, name, problems)
    return (None if problems else examples), problems


def _canonical(row: Row, layout: Layout, problems: ProblemList) -> dict[str, Any] | None:
    """Return the canonical columns of one row, or None if it has a problem; all its problems are noted."""
    before = problems.count
    names, values = layout.names, row.values

    def text(canonical: str, empty_is_fine: bool = False) -> str:
        actual = names[canonical]
        value = values.get(actual)
        wrong = _text_problem(value)
        if wrong is None or (wrong[0] == "is empty" and value == "" and empty_is_fine):
            return str(value)
        problems.add(row.source, wrong[0], wrong[1], line=row.line, column=actual)
        return ""

    record: dict[str, Any] = {"id": "", "prompt": "", "answer": ""}
    if layout.kind == "messages":
        record |= _from_messages(row, names, problems)
    elif layout.kind == "text":
        record["answer"] = text("text")
    else:
        # A column named 'prompt' may be empty, as raw text is written; a question may not.
        record |= {"prompt": text("prompt", names["prompt"] == "prompt"), "answer": text("answer")}
    for canonical in OPTIONAL:
        if canonical not in names:
            continue
        if canonical == "perturbed_answers":
            record[canonical] = _texts(row, names[canonical], problems)
        elif canonical == "group" and isinstance(values.get(names[canonical]), int):
            record[canonical] = str(values[names[canonical]])
        else:
            record[canonical] = text(canonical)
    if problems.count > before:
        return None
    asked = "messages" if "messages" in record else "prompt"
    record["id"] = example_id({asked: record[asked], "answer": record["answer"]})
    return {**record, SOURCE_FILE: row.source, SOURCE_LINE: row.line}


def _text_problem(value: Any) -> tuple[str, str] | None:
    """Return (what, fix) of a value that should be a text with something in it, or None if it is one."""
    if value is None:
        return "is missing", "fill it in, or remove the example"
    if isinstance(value, float) and math.isnan(value):
        return "is NaN", "fill it in, or remove the example"
    if not isinstance(value, str):
        return f"is {str(value)[:60]} of type {type(value).__name__}, not a text", "put it in quotes"
    if not value.strip():
        return "is empty", "fill it in, or remove the example"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half of a character ({value[error.start]!r} at {error.start})", "write the whole character"
    return None


def _listed(row: Row, actual: str, problems: ProblemList, fix: str) -> list[Any]:
    """Return a list, or the one that a text such as a CSV cell holds as JSON."""
    value = row.values.get(actual)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = row.values[actual]
    if isinstance(value, list) and value:
        return value
    said = {"[]": "an empty list", "None": "missing"}.get(str(value), f"{str(value)[:60]!r}, not a list")
    problems.add(row.source, f"is {said}", fix, line=row.line, column=actual)
    return []


def _texts(row: Row, actual: str, problems: ProblemList) -> list[str]:
    texts = _listed(row, actual, problems, LIST_FIX)
    for number, value in enumerate(texts, 1):
        wrong = _text_problem(value)
        if wrong:
            problems.add(row.source, f"entry {number} {wrong[0]}", wrong[1], line=row.line, column=actual)
    return texts


def _from_messages(row: Row, names: Mapping[str, str], problems: ProblemList) -> dict[str, Any]:
    """Split a chat into the turns before the answer, and the answer: its last assistant turn."""
    actual = names["messages"]
    turns: list[dict[str, str]] = []
    listed = _listed(row, actual, problems, MESSAGES_FIX)
    for number, turn in enumerate(listed, 1):
        keys = turn if isinstance(turn, dict) else {}
        wrong = next((w for key in ("role", "content") if (w := _text_problem(keys.get(key)))), None)
        if wrong:
            what = f"turn {number}: role or content {wrong[0]}"
            problems.add(row.source, what, MESSAGES_FIX, line=row.line, column=actual)
        elif keys.get("tool_calls"):
            what, fix = f"turn {number} calls tools, which is not supported", "write the turn as text"
            problems.add(row.source, what, fix, line=row.line, column=actual)
        else:
            turns.append({"role": keys["role"], "content": keys["content"]})
    if len(turns) < len(listed) or not listed:
        return {}
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
    if "answer" in names:
        answer = row.values.get(names["answer"])
        wrong = _text_problem(answer)
        if wrong:
            problems.add(row.source, *wrong, line=row.line, column=names["answer"])
            return {}
        # As this function writes it: the turns before the answer, and the answer in its own column.
        if last == len(turns) - 1:
            if turns[last]["content"] != answer:
                what = f"the last assistant turn and '{names['answer']}' are different answers"
                problems.add(row.source, what, "keep one of them", line=row.line, column=actual)
            turns = turns[:last]
    elif last < 0:
        problems.add(row.source, "has no assistant turn", "add the answer", line=row.line, column=actual)
        return {}
    else:
        turns, answer = turns[:last], turns[last]["content"]
    if not turns:
        what, fix = "has nothing before the answer", "add the user's turn, or use a text column"
        problems.add(row.source, what, fix, line=row.line, column=actual)
        return {}
    asked = [turn["content"] for turn in turns if turn["role"] == "user"] or [turns[-1]["content"]]
    return {"prompt": asked[-1], "answer": answer, "messages": turns}


def _carried(rows: list[Row], ours: Mapping[str, list[Any]], found: list[str], layout: Layout) -> dict[str, list[Any]]:
    """Return the columns that are not ours, under names that are free."""
    carried: dict[str, list[Any]] = {}
    for column in found:
        if column in layout.names.values() or column in (SOURCE_FILE, SOURCE_LINE):
            continue
        values = [row.values.get(column) for row in rows]
        if column in ("id", "prompt") and values == ours.get(column):
            continue  # a set that was read before
        free = column
        while free in RESERVED or (free != column and free in found):
            free = f"source_{free}"
        carried[free] = values
    return carried


def _dataset(columns: Mapping[str, list[Any]], name: str, problems: ProblemList) -> Dataset | None:
    for column, values in columns.items():
        try:
            pyarrow.array(values)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            kinds = sorted({type(value).__name__ for value in values if value is not None})
            what = f"cannot be one column ({str(error).splitlines()[0][:120]}); it holds {', '.join(kinds)}"
            problems.add(name, what, "give all values of the column one type, or leave the column out", column=column)
    return None if problems or not columns else Dataset.from_dict(dict(columns))
