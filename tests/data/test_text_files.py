from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data.problems import ProblemList
from expunge.data.text_files import TEXT_READERS, Row, text_lines

# What UTF-8 can write; a carriage return alone would end a line for some readers.
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
objects = st.lists(st.dictionaries(plain, plain | st.integers() | st.none() | st.lists(plain), max_size=3), min_size=1)


def read(path: Path, content: str | bytes) -> tuple[list[Row], ProblemList]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    problems = ProblemList()
    return list(TEXT_READERS[path.suffix](path, problems)), problems


def said(problems: ProblemList) -> list[tuple[str, str]]:
    return [(problem.where.split(", ", 1)[-1], problem.what) for problem in problems.all()]


@settings(deadline=None, max_examples=40)
@given(objects, st.sampled_from([None, 1]), st.booleans())
def test_json_round_trip(values: list[dict[str, object]], indent: int | None, ascii_only: bool) -> None:
    with TemporaryDirectory() as folder:
        lines = "\n".join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
        rows, problems = read(Path(folder, "a.json"), lines)
        assert [row.values for row in rows] == values
        assert [row.line for row in rows] == list(range(1, len(values) + 1))
        listed, more = read(Path(folder, "b.json"), json.dumps(values, indent=indent, ensure_ascii=ascii_only))
        assert [row.values for row in listed] == values
        assert not problems
        assert not more


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(plain.filter(lambda x: "\0" not in x), plain.filter(lambda x: "\0" not in x)), min_size=1))
def test_csv_round_trip_with_the_line_of_every_record(pairs: list[tuple[str, str]]) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written)
    writer.writerow(["a", "b"])
    starts = []
    for pair in pairs:
        starts.append(written.getvalue().count("\n") + 1)
        writer.writerow(pair)
    with TemporaryDirectory() as folder:
        rows, problems = read(Path(folder, "a.csv"), written.getvalue())
    assert [tuple(row.values.values()) for row in rows] == pairs
    assert [row.line for row in rows] == starts
    assert not problems


def test_lines_of_a_json_list(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.json", '\n[{"a": 1},\n\n {\n"a": 2}\n, {"a": 3}]\n')
    assert [row.line for row in rows] == [2, 4, 6]
    assert not problems


def test_one_object_over_many_lines(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.json", '{\n"a":\n 1}\n')
    assert rows == [Row(str(tmp_path / "a.json"), 1, {"a": 1})]
    assert not problems


def test_a_broken_first_line_does_not_hide_the_rest(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.json", '{"a": 1\n{"a": 2}\n')
    assert [row.values for row in rows] == [{"a": 2}]
    assert [where for where, _ in said(problems)] == ["line 1"]


@pytest.mark.parametrize(
    ("name", "content", "where", "what", "fix"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n', "line 2", "invalid JSON", "one complete JSON object"),
        ("a.jsonl", '{"a": 1}\n\n{"a": 2, "b', "line 3", "invalid JSON", "cut off"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2", "a JSON int, not an object", "object"),
        ("a.jsonl", "[" * 100_000, "line 1", "invalid JSON", "cut off"),
        ("a.json", '[{"a": 1},\n{"a": 2}\n', "line 2", "the list is not closed", "cut off"),
        ("a.json", '[{"a": 1},\n{"a": "x', "line 2", "invalid JSON", "cut off"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "line 1", "expected ','", "commas"),
        ("a.json", '[{"a": 1},\n"x"]', "line 2", "holds a str", "list of objects"),
        ("a.json", '[{"a": 1}]\n{"a": 2}', "line 1", "more after the end", "one JSON list"),
        ("a.csv", "a,b\n1,2\n1\n", "line 3", "has 1 values where the header has 2", "quote values"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', "line 2", "unexpected end of data", "cut off"),
        ("a.csv", 'a,b\n1,"2"3\n', "line 2", "not valid CSV", "close every quote"),
        ("a.csv", "a,a\n1,2\n", "line 1", "names columns twice: a", "rename"),
        ("a.csv", "a;b\n1;2\n", "line 1", "separated by ';'", "commas"),
        ("a.tsv", "a,b\n1,2\n", "line 1", "separated by ','", "tabs"),
        ("a.jsonl", '{"a": "é"}\n{"a": "é"}\n'.encode("latin-1"), "line 1", "byte 0xe9 at offset 7", "UTF-8"),
        ("a.csv", b"a,b\nx,y\nx,\xff\n", "line 3", "byte 0xff at offset 10", "UTF-8"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), "line 1", "UTF-16", "iconv"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16-le"), "line 1", "UTF-16", "iconv"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, where: str, what: str, fix: str) -> None:
    _, problems = read(tmp_path / name, content)
    first = problems.all()[0]
    assert first.where == f"{tmp_path / name}, {where}"
    assert what in first.what
    assert fix in first.fix


def test_every_bad_line_is_found_and_the_line_is_still_read(tmp_path: Path) -> None:
    content = b'{"a": "\xe9"}\n{"a": 1}\n{"a": "\xe9"\n'
    rows, problems = read(tmp_path / "a.jsonl", content)
    assert len(rows) == 2
    assert [where for where, _ in said(problems)] == ["line 1", "line 3", "line 3"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_empty_files_have_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    rows, problems = read(tmp_path / name, content)
    assert rows == []
    assert not problems


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    rows, problems = read(tmp_path / "a.csv", b"\xef\xbb\xbfa,b\r\n1,2\r\n")
    assert rows[0].values == {"a": "1", "b": "2"}
    assert not problems
    assert [number for number, _ in text_lines(tmp_path / "a.csv", ProblemList())] == [1, 2]


def test_long_values_and_tabs(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows, problems = read(tmp_path / "a.tsv", "a\tb\n" + "x" * 300_000 + "\ty, z\n")
    assert (len(rows[0].values["a"]), rows[0].values["b"]) == (300_000, "y, z")
    assert not problems
    assert csv.field_size_limit() == limit
