"""Everything a report shows, as one value: what the HTML page, the JSON file and the model card are made from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from expunge.audits.base import Estimate, Evidence, Finding, Plot, Scalar, Table
from expunge.errors import BadInput, Problem

SCHEMA = 1
"""Version of the JSON form. Raised when a field changes its meaning or goes away."""

RemovalLevel = Literal["guard", "adapter", "approximate", "exact", "unknown"]

LEVELS: dict[str, str] = {
    "guard": "The weights still hold the data. Only what the model says is filtered, "
    "so whoever has the weights can get it back.",
    "adapter": "The original weights are unchanged and still hold the data; "
    "a removable adapter on top of them counteracts it.",
    "approximate": "The weights themselves were changed so that the model behaves as if it had not seen the data. "
    "This is tested, not guaranteed.",
    "exact": "The weights were computed without the data at any point, so they cannot hold it.",
    "unknown": "Nobody stated how this model was made, so this report speaks only of how it behaves.",
}
"""What each removal level means, in one sentence that every report prints."""


@dataclass(frozen=True)
class RequestSummary:
    """What was asked: sizes of the example sets and the request's fingerprint. None is a set that was not given."""

    name: str
    scenario: str
    forget: int
    retain: int | None = None
    holdout: int | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class MethodSummary:
    """How it was done: id of the method, its resolved settings and its paper."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


@dataclass(frozen=True)
class ModelSummary:
    """One model of the comparison: where it is, the SHA-256 of its weights and how many parameters it has."""

    path: str = ""
    sha256: str = ""
    parameters: int | None = None


@dataclass(frozen=True)
class AuditSummary:
    """What a reader should know of an audit: its question, an optional sentence on it, its paper and its family."""

    title: str
    explanation: str = ""
    paper: str = ""
    family: str = ""


@dataclass(frozen=True)
class PathPoint:
    """One in-training audit.

    Attributes:
        step: optimiser step, 0 before training.
        forget: the forget statistic on the probe subset, or None where it was not measured.
        retain: the retain statistic on the probe subset, or None.
        kept: whether this is the checkpoint that became the result.
    """

    step: int
    forget: float | None
    retain: float | None
    kept: bool = False


@dataclass(frozen=True)
class Training:
    """How forgetting went.

    Attributes:
        loss: term of the objective -> list of (step, value).
        path: the in-training audits in order.
        forget_statistic, retain_statistic: what ``path`` measures, in words, such as "answer NLL on the forget set".
        forget_target: the level of the forget statistic at which a model that never knew stands, or None.
        stop_reason: why training ended, in one sentence.
    """

    loss: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    path: Sequence[PathPoint] = ()
    forget_statistic: str = "forget statistic"
    retain_statistic: str = "retain statistic"
    forget_target: float | None = None
    stop_reason: str = ""


@dataclass(frozen=True)
class Sample:
    """One question and what each model answered.

    Attributes:
        id: the example.
        prompt, gold: the question and its true answer.
        role: "forget", "retain" or "holdout".
        answers: model name -> its greedy answer.
    """

    id: str
    prompt: str
    gold: str
    role: str
    answers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunReport:
    """Everything that a report shows.

    Attributes:
        title: heading of the report.
        created: ISO 8601 date, or date and time. Given, never read from the clock, so that equal runs give equal bytes.
        request: what was asked.
        removal_level: what kind of removal the method can give; one of ``LEVELS``.
        models: model name -> what it is. Names as in ``Finding.estimates``: "original", "unlearned", "oracle", ...
        verdict: the plain form of the verdict: ``result``, ``sentence``, ``retained`` (result, sentence), ``alpha``,
            ``rows`` (one per test) and ``notes``; or None if none was asked for.
        findings: what the audits found.
        audits: audit id -> its question and paper.
        method: how it was done, or None if the models were only audited.
        training: how forgetting went, or None if nothing was trained.
        samples: questions with the answers of every model.
        recipe, versions, hardware: what was run, with what, on what; plain values.
        seeds: what was seeded -> seed.
        cost: stage ("forgetting", "proving", "retraining") -> account as by ``Cost.to_dict``; a stage that did not take
            place is left out.
        notes: what else a reader should know.

    Raises:
        BadInput: a removal level that does not exist.
    """

    title: str
    created: str
    request: RequestSummary
    removal_level: RemovalLevel
    models: Mapping[str, ModelSummary]
    verdict: Mapping[str, Any] | None = None
    findings: Sequence[Finding] = ()
    audits: Mapping[str, AuditSummary] = field(default_factory=dict)
    method: MethodSummary | None = None
    training: Training | None = None
    samples: Sequence[Sample] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    cost: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.removal_level not in get_args(RemovalLevel):
            raise BadInput(
                Problem("removal_level", f"'{self.removal_level}' is not one", f"use one of {', '.join(LEVELS)}")
            )

    @property
    def rte(self) -> float | None:
        """Run-time efficiency (RTE) of the field's tables: minutes of wall time that forgetting alone took.

        Masks and statistics of the method count, training the original, in-training audits and proving do not. None
        where it was not recorded.
        """
        spent = self.cost.get("forgetting", {}).get("seconds")
        return None if spent is None else spent / 60

    def to_json(self) -> str:
        """Return the report as JSON text, keys in a fixed order.

        Standard JSON has no NaN and no infinity; such numbers are written as ``{"$float": "nan" | "inf" | "-inf"}``.
        """
        plain = {"schema": SCHEMA, **{f.name: to_plain(getattr(self, f.name)) for f in fields(self)}}
        return json.dumps(plain, ensure_ascii=False, allow_nan=False, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunReport:
        """Read what ``to_json`` wrote.

        Raises:
            BadInput: not JSON, not a report, or written by a newer version.
        """
        try:
            raw = json.loads(text, object_hook=_revive)
        except json.JSONDecodeError as error:
            raise BadInput(
                Problem(f"report, line {error.lineno}", f"is not JSON: {error.msg}", "give a report.json")
            ) from None
        if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
            raise BadInput(
                Problem("report", f"is not a report of schema {SCHEMA}", "use the version of Expunge that wrote it")
            )
        try:
            return cls(
                **raw
                | {
                    "request": RequestSummary(**raw["request"]),
                    "models": {name: ModelSummary(**model) for name, model in raw["models"].items()},
                    "findings": [_finding(item) for item in raw["findings"]],
                    "audits": {name: AuditSummary(**audit) for name, audit in raw["audits"].items()},
                    "method": MethodSummary(**raw["method"]) if raw["method"] else None,
                    "training": _training(raw["training"]) if raw["training"] else None,
                    "samples": [Sample(**sample) for sample in raw["samples"]],
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                Problem("report", f"has unexpected content: {error}", "give a report.json that Expunge wrote")
            ) from None

    def write_json(self, path: str | Path) -> Path:
        """Write the report as JSON to ``path``; an existing file is replaced in one step."""
        return write_text(path, self.to_json())


def to_plain(value: Any) -> Any:
    """Turn dataclasses, mappings, sequences and array scalars into plain JSON values.

    Raises:
        BadInput: a value that JSON cannot hold.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return {"$float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [to_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return to_plain(value.tolist())
    raise BadInput(Problem("report", f"cannot hold a {type(value).__name__}", "give plain values"))


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text so that a reader sees the old file or the whole new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
    return path


def _revive(item: dict[str, Any]) -> Any:
    return float(item["$float"]) if item.keys() == {"$float"} else item


def _training(raw: dict[str, Any]) -> Training:
    loss = {term: [(step, value) for step, value in points] for term, points in raw["loss"].items()}
    return Training(**raw | {"loss": loss, "path": [PathPoint(**point) for point in raw["path"]]})


def _finding(raw: dict[str, Any]) -> Finding:
    return Finding(
        **raw
        | {
            "scalars": [Scalar(**scalar) for scalar in raw["scalars"]],
            "estimates": {
                model: {name: Estimate(**estimate) for name, estimate in named.items()}
                for model, named in raw["estimates"].items()
            },
            "evidence": [Evidence(**evidence) for evidence in raw["evidence"]],
            "plots": [Plot(**plot) for plot in raw["plots"]],
            "tables": [Table(**table) for table in raw["tables"]],
        }
    )
