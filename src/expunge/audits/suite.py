"""Asks many audits the same models at once: one shared pass, one finding per audit."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic
from datasets import Dataset

from expunge.audits.base import Audit, Finding
from expunge.audits.observations import Counts, Observations
from expunge.errors import BadInput, Problem
from expunge.registry import Registry, near_names
from expunge.requests.request import DeletionRequest
from expunge.tasks.cost import Cost
from expunge.training.settings import wrong_settings

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

AUDITS: Registry[Audit] = Registry("expunge.audits", Audit, "audit")  # type: ignore[type-abstract]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AuditResult:
    """What a suite of audits found.

    Attributes:
        findings: one per audit, in the order of the audits.
        counts: per distinct model, what was asked and what was run.
        cost: per distinct model, what observing it cost.
        seconds: wall time of the whole suite.
        titles: audit id -> its question.
        samples: role -> example id -> model -> greedy answer, for the example sets that were generated for.
    """

    findings: list[Finding]
    counts: Mapping[str, Counts] = field(default_factory=dict)
    cost: Mapping[str, Cost] = field(default_factory=dict)
    seconds: float = 0.0
    titles: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)

    @property
    def crashed(self) -> list[Finding]:
        """The findings of audits that failed, with their reasons in ``note``."""
        return [finding for finding in self.findings if finding.status == "crashed"]

    def finding(self, audit: str) -> Finding:
        """Return the finding of an audit.

        Raises:
            KeyError: it was not run.
        """
        return {finding.audit: finding for finding in self.findings}[audit]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values that ``json.dumps`` takes."""
        return {
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "counts": {model: counts.to_dict() for model, counts in self.counts.items()},
            "cost": {model: cost.to_dict() for model, cost in self.cost.items()},
            "seconds": self.seconds,
            "titles": dict(self.titles),
            "samples": {role: dict(answers) for role, answers in self.samples.items()},
        }


def select_audits(
    audits: Sequence[str | Audit] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    kind: str = "causal_lm",
    scenario: str = "examples",
) -> list[Audit]:
    """Return the audits to run, with their settings validated.

    Args:
        audits: names or instances; by default every audit that serves the kind of model and runs by default, for all
            requests or for those of this scenario, and those that ``settings`` names.
        settings: audit name -> setting -> value.
        kind: kind of model.
        scenario: of the request.

    Returns:
        The audits, in the order given, by name if none was given.

    Raises:
        BadInput: unknown audits, unknown or invalid settings, an audit named twice or of another kind. All at once.
    """
    settings = dict(settings or {})
    if audits is None:
        chosen: list[str | Audit] = [
            c.id
            for c in AUDITS.classes()
            if kind in c.tasks and (c.default or scenario in c.scenarios or c.id in settings)
        ]
    else:
        chosen = list(audits)
    problems: list[Problem] = []
    out: list[Audit] = []
    for audit in chosen:
        if isinstance(audit, Audit):
            out.append(audit)
            if audit.id in settings:
                what = "are given although the audit is given with its own"
                problems.append(Problem(f"settings of '{audit.id}'", what, "give the name, or no settings"))
        elif audit not in AUDITS.names():
            problems.append(Problem("audits", f"'{audit}' is not an audit", near_names(audit, AUDITS.names())))
        else:
            made = _make(AUDITS.get(audit), settings.get(audit, {}), problems)
            out += [made] if made else []
    names = [audit if isinstance(audit, str) else audit.id for audit in chosen]
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            problems.append(Problem("audits", f"names '{name}' {names.count(name)} times", "name it once"))
    for name in settings:
        if name not in names:
            what, fix = "is not an audit", near_names(name, AUDITS.names())
            if name in AUDITS.names():
                what, fix = "is not run", f"ask for it too (--audit {name}), or leave its settings out"
            problems.append(Problem(f"settings of '{name}'", what, fix))
    for one in out:
        if kind not in one.tasks:
            problems.append(Problem("audits", f"'{one.id}' does not serve {kind}", f"it serves {', '.join(one.tasks)}"))
    if problems:
        raise BadInput(problems)
    return out


def _make(audit: type[Audit], settings: Mapping[str, Any], problems: list[Problem]) -> Audit | None:
    try:
        return audit(audit.Config(**settings))
    except pydantic.ValidationError as error:
        problems += wrong_settings(audit.Config, error, f"audit {audit.id}: ")
        return None


def run_audits(
    models: Mapping[str, CausalLM],
    request: DeletionRequest,
    audits: Sequence[str | Audit] | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    extra: Mapping[str, Dataset] | None = None,
    limits: Mapping[str, int] | None = None,
    max_new_tokens: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> AuditResult:
    """Ask every audit, sharing one teacher-forced pass and one generating pass per distinct model.

    An audit that fails gives a finding with status "crashed" and the reason; the others go on.

    Args:
        models: "unlearned", and for comparison "original", "oracle", "oracle-2", ...
        request: what was to be forgotten and kept.
        audits, settings: as in ``select_audits``.
        extra, limits, max_new_tokens, seed: as in ``Observations``.
        progress: called with (what is being done, steps done, steps in all).

    Returns:
        The findings, with counts and cost per distinct model.

    Raises:
        BadInput: anything that can be known to be wrong before work starts.
    """
    started = time.perf_counter()
    kind = next((model.kind for model in models.values()), "causal_lm")
    chosen = select_audits(audits, settings, kind, request.scenario)
    seen = Observations(models, request, extra=extra, limits=limits, max_new_tokens=max_new_tokens, seed=seed)
    for audit in chosen:
        audit.prepare(seen)
    runnable = [audit for audit in chosen if not _lacking(audit, seen)]
    tell = progress or (lambda what, done, total: None)
    distinct = list(seen.counts())
    total = 2 * len(distinct) + len(chosen)
    for k, model in enumerate(distinct):
        tell(f"scoring with {model}", 2 * k, total)
        _attempt(seen.prefetch_scores, runnable, model)
        tell(f"asking {model}", 2 * k + 1, total)
        _attempt(seen.prefetch_generations, runnable, model)
    findings = []
    for k, audit in enumerate(chosen):
        tell(audit.id, 2 * len(distinct) + k, total)
        findings.append(run_one(audit, seen))
    tell("done", total, total)
    return AuditResult(
        findings=findings,
        counts=seen.counts(),
        cost=seen.cost(),
        seconds=time.perf_counter() - started,
        titles={audit.id: audit.title for audit in chosen},
        samples=seen.generated(),
    )


def run_one(audit: Audit, seen: Observations) -> Finding:
    """Run one audit: "no data" where a need is not met, "crashed" where it fails or gives a number that is not one."""
    if lacking := _lacking(audit, seen):
        return Finding(audit.id, "no data", note="; ".join(lacking))
    try:
        finding = audit.run(seen)
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        return Finding(audit.id, "crashed", note=f"{type(error).__name__}: {reason}")
    broken = next(not_finite(finding), None)
    if broken is not None:
        return Finding(audit.id, "crashed", note=f"gave a value that is NaN or infinite: {broken}")
    evidence = tuple(dataclasses.replace(e, audit=audit.id, family=audit.family) for e in finding.evidence)
    return dataclasses.replace(finding, evidence=evidence)


def not_finite(finding: Finding) -> Iterator[str]:
    """Yield the place of every NaN or infinity in a finding."""
    plain = dataclasses.asdict(finding)
    for name in ("estimates", "per_example", "evidence", "plots", "tables", "attempted"):
        yield from _not_finite(plain[name], name)


def _not_finite(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield where
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{where}/{name}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _not_finite(inner, where)


def _lacking(audit: Audit, seen: Observations) -> list[str]:
    return [why for need in audit.needs if (why := seen.lacks(need))]


def _attempt(prefetch: Callable[[Sequence[Audit], str], None], audits: Sequence[Audit], model: str) -> None:
    """Run a shared pass; if it fails, each audit meets the failure by itself and says so in its finding."""
    with contextlib.suppress(Exception):
        prefetch(audits, model)
