"""Options of benchmarks: from the values of a command line to validated ones, all problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from expunge.benchmarks.base import BENCHMARKS, BenchOptions, Flag, flag_of, read_options
from expunge.errors import BadInput


class Some(BenchOptions):
    split: tuple[str, ...] = Field(("a",), description="Splits.")
    model: Annotated[tuple[str, ...], Flag("--checkpoint", "MODEL", whole=True)] = Field((), description="Models.")
    audited: int = Field(100, ge=8, description="Rows that audits read.")
    share: float = Field(0.5, gt=0, lt=1, description="A share.")


def test_lists_are_repeated_or_have_commas_unless_an_item_is_whole() -> None:
    found = read_options(Some, {"split": ["x, y", "z"], "model": ["a,b", "c"], "seeds": ["3,4"], "audited": "9"})
    assert found.split == ("x", "y", "z")
    assert found.model == ("a,b", "c")
    assert found.seeds == (3, 4)
    assert found.audited == 9


def test_what_is_not_given_keeps_its_default() -> None:
    found = read_options(Some, {"split": [], "model": [], "audited": None, "out": None})
    assert found == Some()
    assert found.out == Path("runs/bench")


def test_everything_wrong_is_said_by_its_name_on_the_command_line() -> None:
    given = {"seeds": ["1,x"], "audited": "7", "share": "2", "jobs": "0", "splt": ["a"], "methods": ["npo,npoo"]}
    with pytest.raises(BadInput) as caught:
        read_options(Some, given)
    said = {p.where: p for p in caught.value.problems}
    assert set(said) == {"--seeds", "--audited", "--share", "--jobs", "splt", "--methods"}
    assert str(said["--methods"]) == "--methods: 'npoo' is not a method -> did you mean npo?"
    assert said["--seeds"].what == "'x' is not a whole number"
    assert said["--audited"].fix == "rows that audits read"
    assert "8" in said["--audited"].what
    assert "split" in said["splt"].fix


def test_a_list_of_wrong_values_is_not_said_to_be_short_as_well() -> None:
    with pytest.raises(BadInput) as caught:
        read_options(Some, {"seeds": ["x"]})
    assert [p.what for p in caught.value.problems] == ["'x' is not a whole number"]


def test_a_flag_follows_from_the_name_or_is_given() -> None:
    assert flag_of("audited", Some.model_fields["audited"]).name == "--audited"
    assert flag_of("model", Some.model_fields["model"]) == Flag("--checkpoint", "MODEL", True)
    assert flag_of("overrides", Some.model_fields["overrides"]).name == "--set"


def test_every_benchmark_says_what_it_is_and_describes_its_options() -> None:
    assert "tofu" in BENCHMARKS.names()
    for benchmark in BENCHMARKS.classes():
        assert benchmark.title, benchmark
        assert benchmark.paper, benchmark
        assert issubclass(benchmark.Options, BenchOptions)
        flags = [flag_of(name, field).name for name, field in benchmark.Options.model_fields.items()]
        assert len(set(flags)) == len(flags), f"{benchmark.id} has two options of one name"
        assert all(field.description for field in benchmark.Options.model_fields.values()), benchmark.id
