"""The contract of a benchmark: a published protocol, its options and its result.

A benchmark is one file in this room with one subclass of ``Benchmark``. ``expunge bench NAME`` finds it because it is
there, and the fields of its options are the options of that command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from pydantic.fields import FieldInfo

from expunge.errors import BadInput, Problem
from expunge.methods.run import unknown_methods
from expunge.registry import Registry, near_names
from expunge.runs.progress import Progress


@dataclass(frozen=True)
class Flag:
    """How a field of the options is written on the command line, where that does not follow from its name.

    Used as ``field: Annotated[tuple[str, ...], Flag("--set", "KEY=VALUE", whole=True)]``.

    Attributes:
        name: with dashes; the field's name with a hyphen for every underscore where empty.
        metavar: what stands for the value in the help.
        whole: for a tuple: every use of the option is one item. Otherwise an item may also be a list with commas.
    """

    name: str = ""
    metavar: str = ""
    whole: bool = False


def flag_of(name: str, field: FieldInfo) -> Flag:
    """Return how a field is written on the command line, every part resolved."""
    given = next((item for item in field.metadata if isinstance(item, Flag)), Flag())
    return Flag(given.name or f"--{name.replace('_', '-')}", given.metavar, given.whole)


class BenchOptions(BaseModel):
    """What every benchmark takes. Subclass it; give every field a description and, if it has any, its bounds.

    A field may be text, a number, a yes or no, a path, one of these or None, or a tuple of text or numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of the published files; $EXPUNGE_DATA or the hub if left out."
    )
    methods: tuple[str, ...] = Field((), description="Methods, separated by commas.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="Seeds, separated by commas.")
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/bench"), description="Folder for models and tables."
    )
    jobs: PositiveInt | None = Field(None, description="Processes at a time; one per core if left out.")
    overrides: Annotated[tuple[str, ...], Flag("--set", "KEY=VALUE", whole=True)] = Field(
        (), description="A setting of all methods; repeatable."
    )


class BenchResult(Protocol):
    """What a benchmark found."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values: JSON without NaN."""
        ...

    def to_markdown(self) -> str:
        """Return the tables with what must be known to read them."""
        ...


Chosen = TypeVar("Chosen", bound=BenchOptions)


class Benchmark(ABC, Generic[Chosen]):
    """A published protocol.

    Attributes:
        id: name on the command line.
        title: what it measures, in one line.
        paper: where it was published.
        Options: its options; a subclass of ``BenchOptions``.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    Options: ClassVar[type[BenchOptions]] = BenchOptions

    @abstractmethod
    def run(self, options: Chosen, progress: Progress) -> BenchResult:
        """Run the protocol, or finish a run that was stopped; what is finished is not done again.

        Args:
            options: an instance of ``Options``.
            progress: hears what is being done.

        Raises:
            BadInput: everything that is wrong with the options and the files, before any work.
        """


BENCHMARKS: Registry[Benchmark[Any]] = Registry("expunge.benchmarks", Benchmark, "benchmark")  # type: ignore[type-abstract]


def read_options(options: type[Chosen], given: Mapping[str, Any]) -> Chosen:
    """Build options from values as the command line gives them.

    Args:
        options: the benchmark's class of options.
        given: field name -> value; None and empty lists count as not given, items of a list may hold commas.

    Raises:
        BadInput: every field that is wrong, by its name on the command line.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        field = options.model_fields.get(name)
        if value is None or (isinstance(value, list) and not value):
            continue
        if field is not None and isinstance(value, list) and not flag_of(name, field).whole:
            value = [part.strip() for item in value for part in str(item).split(",") if part.strip()]
        values[name] = value
    try:
        return options(**values)
    except ValidationError as error:
        found = error.errors()
        # Values that are wrong are not counted, so that a list of these is said to be too short as well.
        wrong = {item["loc"][0] for item in found if item["type"] != "too_short"}
        found = [item for item in found if item["type"] != "too_short" or item["loc"][0] not in wrong]
        problems = [_problem(options, item) for item in found]
        raise BadInput([*problems, *unknown_methods(values.get("methods", ()))]) from None


def _problem(options: type[BenchOptions], item: Mapping[str, Any]) -> Problem:
    name = str(item["loc"][0])
    field = options.model_fields.get(name)
    if field is None:
        return Problem(name, "is not an option", near_names(name, list(options.model_fields)))
    kinds = {"int_parsing": "whole number", "float_parsing": "number"}
    words = f"is not a {kinds[item['type']]}" if item["type"] in kinds else _lower(item["msg"])
    return Problem(flag_of(name, field).name, f"'{_plain(item['input'])}' {words}", _lower(field.description or ""))


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
