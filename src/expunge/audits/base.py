"""The contract of an audit: a question about a model, answered with numbers and their uncertainty.

An audit is one file in this room with one subclass of ``Audit``. It sees models and a request, nothing of how the
model was made, and it never changes the model that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from expunge.audits.examples import Pair
    from expunge.audits.observations import Observations

Status = Literal["measured", "no data", "crashed"]
Family = Literal["behaviour", "membership", "parametric", "adversarial"]

FAMILIES: dict[Family, str] = {
    "behaviour": "what the model says and finds likely when it is asked as it is",
    "membership": "whether an outsider can tell that the data was trained on",
    "parametric": "what the weights and layers still hold",
    "adversarial": "what comes back under attack: other wordings, prompts, rounding, a little fine-tuning",
}
"""The families of audits, in the order of a report, and what each looks at."""


@dataclass(frozen=True)
class Estimate:
    """One number with its uncertainty.

    Attributes:
        value: the point estimate, or None when there was nothing to measure. Never 0 for "no data".
        low, high: the confidence interval at ``level``, or None where none exists (for example n = 1).
        n: how many independent units (examples, or groups of them) it rests on.
        level: coverage of the interval.
        note: why the value is missing, or what to know when reading it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    level: float = 0.95
    note: str = ""


@dataclass(frozen=True)
class Scalar:
    """Says how to read one named number of a finding.

    Attributes:
        name: identifier, unique in the audit.
        title: what a report prints.
        unit: "probability", "nats/token", "AUC", ...
        knowing_is: "high" if a model that knows the data scores high, "low" if it scores low,
            "none" if the number does not measure knowledge of the forget set.
        digits: decimals in tables.
    """

    name: str
    title: str
    unit: str
    knowing_is: Literal["high", "low", "none"] = "none"
    digits: int = 3


@dataclass(frozen=True)
class Evidence:
    """Per-example values that the verdict tests; produced by an audit, judged elsewhere.

    Attributes:
        statistic: name of the per-example statistic, such as "answer_nll".
        about: whether these examples were to be forgotten or kept.
        values: model name -> example id -> value. Model names are "unlearned", and if present "original",
            "oracle", "oracle-2", "oracle-3", ...
        control: the same statistic on the holdout examples, model name -> holdout example id -> value; empty without
            a holdout set.
        knowing_is: the direction in which a model that knows the data moves the statistic.
        groups: example id -> group (person, author) for cluster-robust intervals; empty where examples stand alone.
        audit: id of the audit it comes from; "" where nobody said.
        family: family of that audit. The suite fills in both.
    """

    statistic: str
    about: Literal["forget", "retain"]
    values: Mapping[str, Mapping[str, float]]
    control: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    knowing_is: Literal["high", "low"] = "high"
    groups: Mapping[str, str] = field(default_factory=dict)
    audit: str = ""
    family: Family = "behaviour"


@dataclass(frozen=True)
class Plot:
    """A plot as data; the report draws it.

    Attributes:
        kind: "distribution" (series: name -> values), "curve" (series: name -> list of (x, y)) or
            "roc" (series: name -> list of (false positive rate, true positive rate)).
        title, x_label, y_label: words on the plot.
        series: name of the model -> its data.
    """

    kind: Literal["distribution", "curve", "roc"]
    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Table:
    """A table that does not fit "one number per model", such as the modules that changed most.

    Attributes:
        title: words above the table.
        columns: heading of each column.
        rows: cells, one sequence per row; strings and numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Finding:
    """What one audit found.

    Attributes:
        audit: id of the audit.
        status: "measured", "no data" (what the audit needs is not in the request) or "crashed".
        scalars: how to read each number.
        estimates: model name -> scalar name -> estimate.
        per_example: model name -> example id -> statistic -> value.
        evidence: what the verdict may use.
        plots: plots as data.
        tables: tables as data.
        attempted: what was tried: the attack's budget, number of examples, settings.
        note: one sentence; the reason where the status is not "measured".
    """

    audit: str
    status: Status = "measured"
    scalars: Sequence[Scalar] = ()
    estimates: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    per_example: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    attempted: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


class AuditConfig(BaseModel):
    """Settings of an audit; unknown keys are errors. Subclass it and give every field a description."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Audit(ABC):
    """One question about a model.

    Class attributes:
        id: name on the command line.
        title: the question, in words.
        tasks: kinds of model it serves.
        needs: what must be there beyond the forget set: any of "retain", "holdout", "original", "oracle",
            "perturbed_answers", "paraphrased_answer". A missing need gives a finding with status "no data".
        reads: which teacher-forced sequences it reads, as (role, field) pairs, so that all audits share one pass;
            roles and fields that are not there are passed over.
        generates: which roles it needs greedy generations for.
        default: whether it runs when nobody asks for it by name.
        scenarios: kinds of request for which it runs without being asked, although it is no default.
        family: what kind of look at a model it is; the verdict and reports say what each family found.
        paper: where the audit comes from.
        config: the settings it was made with.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    needs: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[tuple[str, str], ...]] = ()
    generates: ClassVar[tuple[str, ...]] = ()
    default: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ()
    family: ClassVar[Family] = "behaviour"
    paper: ClassVar[str]
    Config: ClassVar[type[AuditConfig]] = AuditConfig

    def __init__(self, config: AuditConfig | None = None):
        self.config: Any = config if config is not None else self.Config()

    def reading(self, seen: Observations) -> Sequence[tuple[str, str]]:
        """Return what ``run`` will read of these models; ``reads`` unless what is there decides."""
        return self.reads

    def asks(self, seen: Observations) -> Sequence[Pair]:
        """Return the (prompt, answer) pairs beyond ``reading`` that ``run`` will score; they join the shared pass."""
        return ()

    def prepare(self, seen: Observations) -> None:  # noqa: B027 - most audits need nothing prepared
        """Add example sets that the settings name; called before anything is computed.

        Raises:
            BadInput: such a set cannot be read.
        """

    @abstractmethod
    def run(self, seen: Observations) -> Finding:
        """Answer the question.

        Args:
            seen: models, request and everything already observed about them.

        Returns:
            The finding for every model in ``seen.models``.
        """
