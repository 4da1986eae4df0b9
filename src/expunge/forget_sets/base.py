"""The contract of a forget set selector: which examples of a training set to forget.

A selector is one file in this room with one subclass of ``ForgetSetSelector``. It gives every unit (an example, or a
class) a score and says how many are taken; what comes out is an ordinary request, which any method can be given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from expunge.data.scenarios import LABEL
from expunge.errors import BadInput, Problem
from expunge.registry import Registry
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task

Unit = Literal["example", "class"]
SHARE = 0.1
# (what is done, of how many, numbers on the last step)
Heard = Callable[[int, int, Mapping[str, float]], None]


class ForgetSetConfig(BaseModel):
    """Settings of a selector; unknown keys are errors. Subclass it and give every field a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SizedConfig(ForgetSetConfig):
    """Settings of a selector that is told how much to take."""

    share: float | None = Field(
        None, gt=0, lt=1, description=f"share of the units to forget; {SHARE} if neither this nor count is given"
    )
    count: PositiveInt | None = Field(None, description="how many units to forget, instead of a share")
    unit: Unit = Field("example", description="what is chosen among: single examples, or whole classes")


@dataclass
class Hold:
    """What a selector remembers between steps, so that a stopped search can go on where it was.

    Attributes:
        load: returns what was kept last, or None.
        keep: keeps plain lists of numbers by name.
    """

    load: Callable[[], Mapping[str, Sequence[float]] | None] = lambda: None
    keep: Callable[[Mapping[str, Sequence[float]]], None] = lambda state: None


@dataclass(frozen=True)
class Choice:
    """What a selector found.

    Attributes:
        scores: per unit, in the order of ``Units.names``; the highest are taken.
        ties: per unit, decides between equal scores, the highest first; then the unit's name does.
        history: numbers of each step of a search.
    """

    scores: Sequence[float]
    ties: Sequence[float] = ()
    history: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class Units:
    """What is chosen among.

    Attributes:
        kind: single examples, or whole classes.
        names: ids of the examples, or names of the classes, in the order of their first example.
        of: which unit each example belongs to.
    """

    kind: Unit
    names: Sequence[str]
    of: Sequence[int]

    @classmethod
    def read(cls, train: Dataset, kind: Unit) -> Units:
        """Return the units of a training set."""
        if kind == "example":
            return cls(kind, list(train["id"][:]), range(len(train)))
        values = [str(value) for value in train[LABEL][:]]
        place = {name: k for k, name in enumerate(dict.fromkeys(values))}
        return cls(kind, list(place), [place[value] for value in values])


@dataclass(frozen=True)
class ForgetSet:
    """A forget set, as a request.

    Attributes:
        request: what any method can be given.
        selector: id of the selector.
        settings: all of its settings.
        count: how many units were taken.
        unit: of what kind they are.
        scores: unit -> its score, the highest were taken; empty where nothing is scored.
        history: numbers of each step of the search.
        cost: what was spent on choosing.
        test: unseen examples that are no control, because what was chosen is harder or easier than they are; the
            request then has no holdout set, and only a retrained model is a yardstick.
    """

    request: DeletionRequest
    selector: str
    settings: Mapping[str, Any]
    count: int
    unit: Unit
    scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    history: Sequence[Mapping[str, float]] = field(default=(), repr=False)
    cost: Mapping[str, float] = field(default_factory=dict)
    test: Dataset | None = None


class ForgetSetSelector(ABC):
    """One way to choose a forget set.

    Class attributes:
        id: name on the command line.
        title: one line on what it chooses.
        tasks: kinds of model it can ask; empty for every kind.
        needs_model: whether it asks a model at all.
        like_unseen: whether unseen examples are like the examples that it takes, so that they are a control for them.
        paper: source.
        Config: its settings.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    needs_model: ClassVar[bool] = False
    like_unseen: ClassVar[bool] = False
    paper: ClassVar[str]
    Config: ClassVar[type[ForgetSetConfig]] = SizedConfig

    def __init__(self, config: ForgetSetConfig | None = None):
        self.config: Any = config if config is not None else self.Config()

    @property
    def unit(self) -> Unit:
        """What is chosen among."""
        unit: Unit = getattr(self.config, "unit", "example")
        return unit

    def problems(self, train: Dataset, kind: str | None) -> list[Problem]:
        """Find everything that makes the choice impossible, before any compute.

        Args:
            train: the training set.
            kind: of the model; None where there is none.
        """
        found = self.model_problems(kind)
        if self.unit == "class" and LABEL not in train.column_names:
            what = f"is class, and the training set has no column '{LABEL}'"
            found.append(Problem("unit", what, "use unit=example"))
        elif isinstance(self.config, SizedConfig):
            found += self._size_problems(train)
        return found

    def model_problems(self, kind: str | None) -> list[Problem]:
        """Find why it cannot ask a model of this kind; None is no model."""
        if kind is None and self.needs_model:
            return [Problem(f"selector {self.id}", "asks a model, and none is given", "give --model MODEL")]
        if kind is not None and self.tasks and kind not in self.tasks:
            return [Problem(f"selector {self.id}", f"does not serve {kind}", f"it serves {', '.join(self.tasks)}")]
        return []

    def count(self, units: Units) -> int:
        """Return how many units are taken."""
        if self.config.count is not None:
            return int(self.config.count)
        return round((self.config.share or SHARE) * len(units.names))

    @abstractmethod
    def choose(self, train: Dataset, units: Units, task: Task | None, seed: int, hold: Hold, heard: Heard) -> Choice:
        """Score the units.

        Args:
            train: the training set.
            units: what is chosen among.
            task: the model trained on all of it, left as it is; None for selectors that ask none.
            seed: everything random follows from it.
            hold: what was kept of a search that was stopped.
            heard: is told of every step.

        Raises:
            BadInput: examples that the model cannot be given.
        """

    def _size_problems(self, train: Dataset) -> list[Problem]:
        share, count = self.config.share, self.config.count
        if share is not None and count is not None:
            return [Problem("share and count", f"are both given: {share:g} and {count}", "give one of them")]
        units = Units.read(train, self.unit)
        plural = {"example": "examples", "class": "classes"}[self.unit]
        where, given = ("count", str(count)) if count is not None else ("share", f"{share or SHARE:g}")
        taken, there = self.count(units), len(units.names)
        what = f"is {given}, which is {taken} of {there} {plural}"
        if taken < 1:
            return [Problem(where, f"{what}: nothing to forget", "give a larger one")]
        if taken >= there:
            return [Problem(where, f"{what}: nothing would be left to keep", "give a smaller one")]
        if self.unit == "class" and taken > there - 2:
            return [Problem(where, f"{what}: one class would be left, nothing to tell apart", "give a smaller one")]
        if self.unit == "example" and LABEL in train.column_names:
            classes = len({str(value) for value in train[LABEL][:]})
            if taken > there - classes:
                what += f": {there - taken} would be left for {classes} classes, so that one is emptied"
                return [Problem(where, what, "give a smaller one, or forget classes: unit=class")]
        return []


FORGET_SETS: Registry[ForgetSetSelector] = Registry("expunge.forget_sets", ForgetSetSelector, "forget set selector")  # type: ignore[type-abstract]


def take(choice: Choice, units: Units, count: int, classes: Sequence[str] = ()) -> list[int]:
    """Return the units that are taken, best first: the highest scores, but never the last example of a class.

    Args:
        choice: scores of the units.
        units: what is chosen among.
        count: how many.
        classes: class of each unit that is an example; empty where classes may be emptied.

    Raises:
        BadInput: a score is not a number.
    """
    ties = choice.ties or [0.0] * len(units.names)
    if any(score != score for score in choice.scores):
        raise BadInput(Problem("scores", "are not numbers for some units", "look at the model and at the examples"))
    order = sorted(range(len(units.names)), key=lambda u: (-choice.scores[u], -ties[u], units.names[u]))
    left: dict[str, int] = {}
    for name in classes:
        left[name] = left.get(name, 0) + 1
    taken: list[int] = []
    for unit in order:
        if len(taken) == count:
            break
        if classes:
            if left[classes[unit]] == 1:
                continue
            left[classes[unit]] -= 1
        taken.append(unit)
    return taken
