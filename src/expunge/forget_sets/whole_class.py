"""Named classes as the forget set."""

from __future__ import annotations

from typing import Any, ClassVar

from datasets import Dataset
from pydantic import Field, field_validator

from expunge.data.scenarios import LABEL
from expunge.errors import Problem
from expunge.forget_sets.base import Choice, ForgetSetConfig, ForgetSetSelector, Heard, Hold, Unit, Units
from expunge.requests.places import some
from expunge.tasks.base import Task


class WholeClassConfig(ForgetSetConfig):
    """Which."""

    labels: tuple[str, ...] = Field((), description="classes to forget: one name or index, or a list of them")

    @field_validator("labels", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in items)


class WholeClass(ForgetSetSelector):
    """All examples of the classes that are named."""

    id = "class"
    title = "whole classes, by name"
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934 (class-wise forgetting)"
    Config: ClassVar[type[ForgetSetConfig]] = WholeClassConfig

    @property
    def unit(self) -> Unit:
        """Classes."""
        return "class"

    def problems(self, train: Dataset, kind: str | None) -> list[Problem]:
        """Also: classes that are not there, that are named twice, or that leave nothing to tell apart."""
        found = super().problems(train, kind)
        if LABEL not in train.column_names:
            return found
        there, named = Units.read(train, "class").names, self.config.labels
        if not named:
            what = "names no class"
            return [*found, Problem("labels", what, f"give one or more of {some(sorted(there), most=12)}")]
        missing = [name for name in named if name not in there]
        if missing:
            what = f"{some(missing)} {'is' if len(missing) == 1 else 'are'} not there"
            found.append(Problem("labels", what, f"there are {some(sorted(there), most=12)}"))
        if len(set(named)) < len(named):
            found.append(Problem("labels", f"{some(named)} repeats a class", "name each once"))
        elif not missing and len(there) - len(named) < 2:
            left = len(there) - len(named)
            what = f"names {len(named)} of {len(there)} classes; {left} would be left, nothing to tell apart"
            found.append(Problem("labels", what, "name fewer"))
        return found

    def count(self, units: Units) -> int:
        """As many as are named."""
        return len(self.config.labels)

    def choose(self, train: Dataset, units: Units, task: Task | None, seed: int, hold: Hold, heard: Heard) -> Choice:
        """Take those."""
        return Choice([float(name in self.config.labels) for name in units.names])
