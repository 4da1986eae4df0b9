"""The contract of a method: how to forget.

A method is one file in this room with one subclass of ``Method`` (or of ``ObjectiveMethod``, if it is a formula over
shared statistics). It never sees an audit.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_origin

from datasets import Dataset
from pydantic import BaseModel, ValidationError

from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.requests.request import ROLES, DeletionRequest
from expunge.selections.base import SELECTIONS, Mask, Selection, both, selected_share, sizes_of, zero_outside
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.examples import EncodedExamples
from expunge.training.loop import Progress, TrainResult, train
from expunge.training.objective import Objective, Stream
from expunge.training.probe import Probe
from expunge.training.settings import Strict, TrainSettings, inner_settings, wrong_settings

RemovalLevel = Literal["guard", "adapter", "approximate", "exact"]


class MethodConfig(Strict):
    """Hyperparameters of a method; subclass it and give every field a description and the paper's default."""


@dataclass
class Run:
    """Where and how a method runs.

    Attributes:
        train: settings of the training loop.
        folder: for logs and checkpoints; None keeps everything in memory.
        progress: called after every optimiser step.
        oracle: a model retrained without the forget set, only for the stopping target "oracle".
        sparse: for a model that was pruned: the weights that are left. All others are 0 and stay 0.
        notes: what the method found out on the way and wants to say; becomes part of the outcome's ``config``.
        elsewhere: what the objective took of other models, such as the training of a proxy; part of the outcome's cost.
    """

    train: TrainSettings = field(default_factory=TrainSettings)
    folder: Path | None = None
    progress: Progress | None = None
    oracle: Task | None = None
    sparse: Mask | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    elsewhere: Cost = field(default_factory=Cost)


@dataclass
class Unlearned:
    """The outcome of a method.

    Attributes:
        model: the new model; the one that was given is unchanged.
        method: id of the method.
        removal_level: what kind of removal this is, at best.
        config: the method's hyperparameters.
        train: the training settings, or None if nothing was trained.
        training: what the loop did, or None.
        cost: what was spent on forgetting, in-training audits included.
    """

    model: Task
    method: str
    removal_level: RemovalLevel
    config: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] | None = None
    training: TrainResult | None = None
    cost: Cost = field(default_factory=Cost)

    def save(self, folder: str | Path) -> None:
        """Write the new model so that plain ``from_pretrained`` loads it."""
        self.model.save(Path(folder), {"method": self.method, "removal_level": self.removal_level})


class Method(ABC):
    """One published way to forget.

    Class attributes:
        id: name on the command line.
        title: one line on what it does.
        tasks: kinds of model it serves.
        needs: example sets beyond the forget set that it cannot do without.
        scenarios: kinds of request that it serves; empty for every kind.
        removal_level: the strongest honest claim.
        paper: source.
        train_defaults: training settings that differ from the loop's defaults.
        Config: its hyperparameters.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ()
    scenarios: ClassVar[tuple[str, ...]] = ()
    removal_level: ClassVar[RemovalLevel] = "approximate"
    paper: ClassVar[str]
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig | None = None):
        self.config: Any = config if config is not None else self.Config()

    def required(self) -> tuple[str, ...]:
        """Example sets that this configuration needs beyond the forget set."""
        return self.needs

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse before any compute what cannot work.

        Raises:
            BadInput: wrong kind of model or of request, or an example set is missing; every problem is named.
        """
        problems = []
        if task.kind not in self.tasks:
            problems.append(
                Problem(f"method {self.id}", f"does not serve {task.kind}", f"it serves {', '.join(self.tasks)}")
            )
        for role in self.required():
            if getattr(request, role) is None:
                problems.append(Problem(f"method {self.id}", f"needs a {role} set", f"give one with --{role} FILE"))
        if self.scenarios and request.scenario not in self.scenarios:
            what = (
                f"serves requests of the scenario {' or '.join(self.scenarios)}, and this one is '{request.scenario}'"
            )
            problems.append(Problem(f"method {self.id}", what, "name the scenario if that is meant, or another method"))
        if problems:
            raise BadInput(problems)

    @abstractmethod
    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Return a new model that has forgotten; ``task`` is left as it is."""


class ObjectiveMethod(Method):
    """A method that is an objective minimised by the one training loop.

    Class attributes:
        starts_over: training begins from fresh weights, wholly or in part. Such a model may be beyond a forget target
            before its first step, which then is no reason to stop.
    """

    starts_over: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)

    @abstractmethod
    def objective(self) -> Objective:
        """The weighted terms to minimise."""

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """The objective of this run; for terms that depend on model, seed or a teacher, or that keep a state."""
        return self.objective()

    def required(self) -> tuple[str, ...]:
        """Example sets behind the streams of the objective."""
        return tuple(s for s in self.objective().streams() if s in ROLES and s != "forget")

    def examples(self, stream: Stream, task: Task, request: DeletionRequest) -> Dataset:
        """Return the examples of a stream; methods with alternative answers say here what these are."""
        found: Dataset = getattr(request, stream)
        return found

    def encode(self, stream: Stream, model: Task, request: DeletionRequest, run: Run) -> EncodedExamples:
        """Return the encoded examples of a stream; methods that train towards other targets make these here.

        Args:
            stream: which.
            model: the model that training starts from.
            request: what is asked.
            run: where and how.
        """
        return model.encode(self.examples(stream, model, request))

    def start(self, task: Task, run: Run) -> Task:
        """Return the model that training starts from: a copy of the one given."""
        return task.copy()

    def confined(self, model: Task) -> Mask | None:
        """Return which weights this method trains where neither a selection nor adapters say so; None for all."""
        return None

    def adapt(self, model: Task, request: DeletionRequest) -> None:
        """Give the model that training starts from what it may know of data beforehand."""

    def probe(self, model: Task, request: DeletionRequest, run: Run, settings: TrainSettings) -> Probe | None:
        """Return what looks at the model during a training with these settings; None where nothing does."""
        if not settings.stop.every:
            return None
        sets = {role: model.encode(examples) for role, examples in request.sets().items()}
        over = self.starts_over or run.sparse is not None
        return Probe(sets, settings.stop, settings.seed, run.oracle, model.outcomes, model.unit, over)

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Train a copy of the model on the objective."""
        self.check(task, request)
        self._check_stop(run, request)
        started = time.perf_counter()
        objective = self.objective_for(task, request, run)
        selection = selection_of(run.train)
        if selection is not None:
            selection.check(task, request)
        model = self.start(task, run)
        if run.sparse is not None:
            zero_outside(model, run.sparse)
        self.adapt(model, request)
        before = model.cost.snapshot()
        mask = self._selected(selection, model, request, run) if selection else None
        if selection is None and run.train.lora is None:
            mask = self.confined(model)
        mask = both(mask, run.sparse)
        streams = {s: self.encode(s, model, request, run) for s in objective.streams()}
        prepared = model.cost - before + run.elsewhere  # some methods let the model write examples or labels
        prepared.seconds = time.perf_counter() - started
        probe = self.probe(model, request, run, run.train)
        outcome = train(
            model,
            objective,
            streams,
            run.train,
            folder=run.folder,
            mask=mask,
            probe=probe,
            progress=run.progress,
            identity=f"{self.id} {self.config.model_dump_json()}",
        )
        model.source = f"{self.id} of {task.source}"
        return Unlearned(
            model=model,
            method=self.id,
            removal_level=self.removal_level,
            config={**self.config.model_dump(mode="json"), **run.notes},
            train=run.train.model_dump(mode="json"),
            training=outcome,
            cost=prepared + outcome.cost + outcome.probe_cost,
        )

    def _selected(self, selection: Selection, model: Task, request: DeletionRequest, run: Run) -> Mask:
        mask = selection.build(model, request, run.train.seed)
        if not selected_share(mask, sizes_of(model.named_parameters())):
            raise BadInput(Problem(f"selection {selection.id}", "chooses no weight at all", "let it choose more"))
        return mask

    def _check_stop(self, run: Run, request: DeletionRequest) -> None:
        stop, problems = run.train.stop, []
        if stop.every == 0:
            return
        if stop.forget_target == "oracle" and run.oracle is None:
            problems.append(Problem("stop.forget_target", "is oracle and no oracle is there", "give --oracle MODEL"))
        if stop.forget_target == "holdout" and request.holdout is None:
            problems.append(
                Problem("stop.forget_target", "is holdout and there is no holdout set", "give --holdout FILE")
            )
        if stop.keep == "closest" and stop.forget_target == "none":
            problems.append(Problem("stop.keep", "is closest and there is no forget target", "set stop.forget_target"))
        if problems:
            raise BadInput(problems)


class EditingMethod(Method):
    """A method that measures something and then changes the weights once, without training."""

    @abstractmethod
    def edit(self, model: Task, request: DeletionRequest, run: Run) -> dict[str, Any]:
        """Change a model in place.

        Args:
            model: a copy of the one given, in evaluation mode.
            request, run: as in ``apply``.

        Returns:
            What was measured and done, as plain values; it stands in the outcome's ``config["found"]``.
        """

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Edit a copy of the model."""
        self.check(task, request)
        model = task.copy()
        model.model.eval()
        with model.cost.measured():
            found = self.edit(model, request, run)
        model.source = f"{self.id} of {task.source}"
        return Unlearned(
            model=model,
            method=self.id,
            removal_level=self.removal_level,
            config={**self.config.model_dump(mode="json"), **({"found": found} if found else {})},
            cost=model.cost.snapshot(),
        )


def selection_of(train: TrainSettings) -> Selection | None:
    """Return the selection that training is confined to, or None.

    Raises:
        BadInput: there is no such selection, or its settings are wrong.
    """
    if train.select is None:
        return None
    chosen = SELECTIONS.get(train.select.by)
    problems: list[Problem] = []
    config = validate(chosen.Config, train.select.model_extra or {}, f"select.by={chosen.id}", problems)
    if config is None:
        raise BadInput(problems)
    return chosen(config)


def settle(method: type[Method], settings: Mapping[str, Any]) -> tuple[Method, TrainSettings]:
    """Split flat or nested ``key=value`` settings between a method and the training loop, and validate both.

    Args:
        method: the method's class.
        settings: keys of the method's config, of ``TrainSettings``, or dotted keys into the latter ("stop.every") or
            into a mapping among the former.

    Raises:
        BadInput: unknown keys (with near names) or values out of range; all of them at once.
    """
    own, loop = set(method.Config.model_fields), set(TrainSettings.model_fields)
    mine: dict[str, Any] = {}
    theirs: dict[str, Any] = nested(method.train_defaults)
    problems: list[Problem] = []
    for key, value in settings.items():
        head, _, rest = key.partition(".")
        if not rest and key in own:
            mine[key] = value
        elif head in loop:
            _merge(theirs, nested({key: value}))
        elif head in own and get_origin(method.Config.model_fields[head].annotation) is dict:
            mine[head] = {**mine.get(head, {}), rest: value}
        else:
            problems.append(Problem(key, f"is not a setting of {method.id} or of training", _suggestion(key, own)))
    config = validate(method.Config, mine, method.id, problems)
    train_settings = validate(TrainSettings, theirs, "training", problems)
    if train_settings is not None:
        try:
            selection_of(train_settings)
        except BadInput as error:
            problems += error.problems or [Problem("select.by", str(error), "see `expunge selections`")]
    if problems or config is None or train_settings is None:
        raise BadInput(problems)
    return method(config), train_settings


def validate(model: type[Any], values: Mapping[str, Any], where: str, problems: list[Problem]) -> Any:
    """Build a settings object; put what is wrong into ``problems`` in our own words and return None."""
    assert issubclass(model, BaseModel)
    try:
        return model(**values)
    except ValidationError as error:
        problems += wrong_settings(model, error, f"{where}: ")
        return None


def _suggestion(key: str, own: set[str]) -> str:
    """Say which settings of the method or of training resemble a wrong key, those inside of others too."""
    outer = own | set(TrainSettings.model_fields)
    inside = {f"{name}.{inner}" for name in TrainSettings.model_fields for inner in inner_settings(TrainSettings, name)}
    near = near_names(key, sorted(outer | inside))
    return near if near.startswith("did you mean") else near_names(key, sorted(outer))


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested mappings: ``{"stop.every": 2}`` into ``{"stop": {"every": 2}}``."""
    out: dict[str, Any] = {}
    for key, value in flat.items():
        head, _, rest = key.partition(".")
        _merge(out, {head: nested({rest: value}) if rest else value})
    return out


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value
