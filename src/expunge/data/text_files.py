"""Rows of text files (JSON, JSON lines, CSV), each with its line, and everything that keeps them from being read."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from expunge.data.problems import ProblemList

ENCODING_FIX = "save the file as UTF-8, for example: iconv -f WINDOWS-1252 -t UTF-8 old > new"
JSON_FIX = 'write one complete JSON object on each line, such as {"question": "...", "answer": "..."}'
CUT_FIX = "the file seems to be cut off; copy or download it again"
FOREIGN_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


class Row(NamedTuple):
    """One row of a source: the file, its 1-based line there, and the values by column."""

    source: str
    line: int
    values: dict[str, Any]


def text_lines(path: Path, problems: ProblemList) -> Iterator[tuple[int, str]]:
    """Yield (1-based line number, text with its line end) of a UTF-8 file.

    A line that is not UTF-8 is noted as a problem, and still yielded with its bad bytes replaced, so that what is
    otherwise wrong with it is found in the same run.
    """
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                foreign = next((name for bom, name in FOREIGN_BOMS if raw.startswith(bom)), None)
                if foreign is None and b"\0" in raw[:200]:
                    foreign = "binary, or text in UTF-16"
                if foreign:
                    fix = "save the file as UTF-8, for example: iconv -f UTF-16 -t UTF-8 old > new"
                    problems.add(str(path), f"is not UTF-8 but {foreign}", fix, line=1)
                    return
                if raw.startswith(codecs.BOM_UTF8):
                    offset, raw = len(codecs.BOM_UTF8), raw[len(codecs.BOM_UTF8) :]
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                text = raw.decode("utf-8", errors="replace")
                byte = f"byte 0x{raw[error.start]:02x} at offset {offset + error.start}"
                around = raw[max(error.start - 15, 0) : error.start + 15].decode("utf-8", errors="replace").strip()
                problems.add(str(path), f"{byte} is not UTF-8 (near {around!r})", ENCODING_FIX, line=number)
            offset += len(raw)
            yield number, text


def json_rows(path: Path, problems: ProblemList) -> Iterator[Row]:
    """Yield the objects of a JSON file: one per line, or a list of them, or a single object.

    The suffix does not decide: published sets come as JSON lines in files named ``.json``.
    """
    filled = ((number, text) for number, text in text_lines(path, problems) if text.strip())
    first = next(filled, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        yield from _json_list(path, [first, *filled], problems)
        return
    lines: Iterable[tuple[int, str]] = chain([first], filled)
    if not isinstance(_parsed(first[1]), dict):
        # Either one object over many lines, or a first line that is broken.
        lines = list(lines)
        whole = _parsed("".join(text for _, text in lines))
        if isinstance(whole, dict):
            yield Row(str(path), first[0], whole)
            return
    for number, text in lines:
        value = _parsed(text)
        if isinstance(value, dict):
            yield Row(str(path), number, value)
        elif isinstance(value, ValueError | RecursionError):
            cut = not text.endswith("\n")  # only the last line of a file can lack its end
            problems.add(str(path), f"invalid JSON: {value}", CUT_FIX if cut else JSON_FIX, line=number)
        else:
            problems.add(str(path), f"is a JSON {type(value).__name__}, not an object", JSON_FIX, line=number)


def _parsed(text: str) -> Any:
    """Return the JSON value of a text, or the error (which no JSON value is)."""
    try:
        return json.loads(text.rstrip())
    except (ValueError, RecursionError) as error:
        return ValueError(f"{error.msg} (column {error.colno})") if isinstance(error, json.JSONDecodeError) else error


def _json_list(path: Path, lines: list[tuple[int, str]], problems: ProblemList) -> Iterator[Row]:
    """Yield the objects of a JSON list with the line where each starts."""
    text = "".join(part for _, part in lines)
    starts, at = [], 0
    for _, part in lines:
        starts.append(at)
        at += len(part)
    decoder, place, line_index = json.JSONDecoder(), text.index("[") + 1, 0

    def skip(index: int, signs: str = " \t\r\n") -> int:
        while index < len(text) and text[index] in signs:
            index += 1
        return index

    while True:
        place = skip(place)
        while line_index + 1 < len(starts) and starts[line_index + 1] <= place:
            line_index += 1
        number = lines[line_index][0]
        if place >= len(text):
            problems.add(str(path), "the list is not closed", CUT_FIX, line=number)
            return
        if text[place] == "]":
            if skip(place + 1) < len(text):
                problems.add(str(path), "there is more after the end of the list", "write one JSON list", line=number)
            return
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            problems.add(str(path), f"invalid JSON in the value that starts here: {what}", CUT_FIX, line=number)
            return
        if isinstance(value, dict):
            yield Row(str(path), number, value)
        else:
            fix = "write a list of objects"
            problems.add(str(path), f"holds a {type(value).__name__}, not an object", fix, line=number)
        place = skip(place)
        if place < len(text) and text[place] == ",":
            place += 1
        elif place < len(text) and text[place] != "]":
            what = f"expected ',' after the value that starts here, found {text[place]!r}"
            problems.add(str(path), what, "write commas between the objects of the list", line=number)
            return


def csv_rows(path: Path, problems: ProblemList) -> Iterator[Row]:
    """Yield the rows of a CSV file (or tab-separated, by its suffix) with a header line; all values are text."""
    consumed = 0

    def feed() -> Iterator[str]:
        nonlocal consumed
        for consumed, text in text_lines(path, problems):  # noqa: B007
            yield text

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        first = consumed + 1
        try:
            cells = _next_record(reader)
        except csv.Error as error:
            what = f"is not valid CSV: {error}"
            fix = "close every quote, and double the quotes inside of quoted values"
            problems.add(str(path), what, CUT_FIX if "end of data" in str(error) else fix, line=first)
            return
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = cells
            repeated = sorted({name for name in header if header.count(name) > 1})
            if repeated:
                problems.add(str(path), f"names columns twice: {', '.join(repeated)}", "rename one", line=first)
                return
            other = next((sign for sign in (",", ";", "\t", "|") if len(header) == 1 and sign in header[0]), None)
            if other:
                fix = "separate values by commas in a .csv file and by tabs in a .tsv file"
                problems.add(str(path), f"values seem to be separated by {other!r}", fix, line=first)
                return
        elif len(cells) != len(header):
            what = f"has {len(cells)} values where the header has {len(header)}"
            problems.add(str(path), what, f"quote values that contain {delimiter!r}", line=first)
        else:
            yield Row(str(path), first, dict(zip(header, cells, strict=True)))


def _next_record(reader: Any) -> list[str] | None:
    """Read one record of any length; the limit of the csv module is global, so it is put back."""
    old = csv.field_size_limit(2**31 - 1)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(old)


TEXT_READERS: dict[str, Callable[[Path, ProblemList], Iterator[Row]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
}
