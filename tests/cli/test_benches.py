"""``expunge bench``: what is in the room is on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field
from typer.testing import CliRunner

from expunge.benchmarks.base import BENCHMARKS, Benchmark, BenchOptions, Flag
from expunge.cli.app import app
from expunge.runs.progress import Progress


class Given:
    def __init__(self, options: BenchOptions):
        self.options = options

    def to_dict(self) -> dict[str, Any]:
        return self.options.model_dump(mode="json")

    def to_markdown(self) -> str:
        return f"ran with {self.options.methods}"


class SomeOptions(BenchOptions):
    methods: tuple[str, ...] = Field(("a", "b"), description="Methods.")
    file: Annotated[Path | None, Flag(metavar="FILE")] = Field(None, description="A file.")
    share: float = Field(0.5, gt=0, description="A share.")
    quick: bool = Field(False, description="Less of it.")


class Some(Benchmark[SomeOptions]):
    title: ClassVar[str] = "Some protocol"
    paper: ClassVar[str] = "Nobody 2024"
    id: ClassVar[str] = "some"
    Options = SomeOptions

    def run(self, options: SomeOptions, progress: Progress) -> Given:
        progress.stage("running")
        return Given(options)


def call(monkeypatch: pytest.MonkeyPatch, *args: str) -> Any:
    monkeypatch.setitem(BENCHMARKS._classes, "some", Some)
    return CliRunner().invoke(app, ["bench", "some", *args])


def test_fields_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    done = call(
        monkeypatch, "--methods", "x,y", "--methods", "z", "--set", "a=[1,2]", "--file", "f", "--quick", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {
        "data": None, "methods": ["x", "y", "z"], "seeds": [0, 1, 2], "out": "runs/bench", "jobs": None,
        "overrides": ["a=[1,2]"], "file": "f", "share": 0.5, "quick": True,
    }  # fmt: skip


def test_the_tables_are_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch).stdout.strip() == "ran with ('a', 'b')"


def test_help_shows_defaults_and_descriptions(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(call(monkeypatch, "--help").stdout.split())
    assert "Some protocol" in text
    assert "Default: a, b." in text
    assert "Less of it." in text


def test_bench_alone_lists_what_is_there() -> None:
    done = CliRunner().invoke(app, ["bench"])
    assert done.exit_code == 0
    for benchmark in BENCHMARKS.classes():
        assert benchmark.id in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    listed = json.loads(CliRunner().invoke(app, ["bench", "--json"]).stdout)
    assert [b["name"] for b in listed] == BENCHMARKS.names()


@pytest.mark.parametrize("name", BENCHMARKS.names())
def test_every_benchmark_has_help_within_80_columns(name: str) -> None:
    done = CliRunner().invoke(app, ["bench", name, "--help"])
    assert done.exit_code == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "--json" in done.stdout
