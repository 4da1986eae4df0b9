"""Prove: one call from models and a request to findings, a verdict and a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.audits.base import Audit, Finding
from expunge.audits.observations import Counts
from expunge.audits.suite import AuditResult, run_audits
from expunge.errors import BadInput, Problem
from expunge.reports.html import write_html
from expunge.reports.report import RunReport
from expunge.requests.request import DeletionRequest, check_given
from expunge.runs import facts, summary
from expunge.runs.models import AnyModel, gather, model_path, stated_level
from expunge.runs.progress import Progress
from expunge.tasks.cost import Cost
from expunge.verdict import Verdict, VerdictSettings, decide


@dataclass(frozen=True)
class AuditReport:
    """What audits found and what follows from it.

    Attributes:
        findings: one per audit; numbers with intervals, per-example values, plots.
        verdict: the answer: ``result``, ``sentence``, ``retained``, one row per test.
        counts: per model, what was asked and what was run.
        cost: per model, what asking it cost.
        report: everything as the value that pages and cards are made from.
    """

    findings: Sequence[Finding]
    verdict: Verdict
    counts: Mapping[str, Counts]
    cost: Mapping[str, Cost]
    report: RunReport

    def finding(self, audit: str) -> Finding:
        """Return the finding of an audit.

        Raises:
            KeyError: it was not run.
        """
        return {finding.audit: finding for finding in self.findings}[audit]

    def to_json(self) -> str:
        """Return everything as JSON text; ``RunReport.from_json`` reads it."""
        return self.report.to_json()

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page."""
        return write_html(self.report, path)

    def __str__(self) -> str:
        return f"{self.verdict.sentence}\n{self.verdict.retained_sentence}"


def audit(
    model: AnyModel,
    request: DeletionRequest,
    *,
    original: AnyModel | None = None,
    oracles: Sequence[AnyModel] | AnyModel = (),
    audits: Sequence[str | Audit] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    removal_level: str | None = None,
    extra: Mapping[str, Dataset] | None = None,
    limits: Mapping[str, int] | None = None,
    verdict: VerdictSettings | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    title: str | None = None,
    **loading: Any,
) -> AuditReport:
    """Ask whether a model has forgotten what a request names. No model that is given is changed.

    Args:
        model: the model to judge: a folder or hub name, a task, what ``unlearn`` returned, or anything that
            offers ``score``, ``generate`` and ``copy``.
        request: what was to be forgotten and kept, and what was never seen.
        original: the model before unlearning; without it nothing can be shown to be removed.
        oracles: one or more models trained without the forget set; the best yardstick there is.
        audits: names of audits, or audits; by default all that run by default.
        settings: audit -> setting -> value.
        removal_level: "guard", "adapter", "approximate", "exact" or "unknown". By default what is known of the
            model: its method's level, "guard" for a wrapped model, otherwise "unknown".
        extra: further sets of examples that some audits read, such as ``test`` for classifiers.
        limits: set -> most examples that audits read; see ``summary.audit_limits`` for the default.
        verdict: error rate and margins.
        progress: hears what is being done.
        seed: of resampling, splits and draws.
        title: heading of the report.
        loading: options of ``load_task`` for models given by path: dtype, device, for language models template, chat,
            max_length.

    Raises:
        BadInput: a model that cannot be loaded or has weights that are NaN or infinite, unknown audits or settings.
            Nothing has been computed then.
    """
    progress = progress or Progress()
    check_given(request, settings=settings, limits=limits)
    if isinstance(audits, str):
        raise BadInput(Problem("audits", f"is the text '{audits}'", f"give a list: audits=['{audits}']"))
    if isinstance(verdict, Mapping):
        raise BadInput(Problem("verdict", "is a dict", "give expunge.verdict.VerdictSettings(alpha=0.01) or the like"))
    if removal_level is not None:  # before anything is loaded
        decide([], removal_level=removal_level, settings=verdict)
    if isinstance(oracles, str | Path) or not isinstance(oracles, Sequence):
        oracles = [oracles]
    progress.stage("loading models")
    models = gather(model, original, oracles, **loading)
    level = removal_level or stated_level(model)
    decide([], removal_level=level, settings=verdict)  # refuses an unknown level before anything is computed
    progress.stage("asking the models")
    limits = summary.audit_limits(request, limits)
    result = run_audits(
        models,
        request,
        audits,
        settings=settings,
        extra=extra,
        limits=limits,
        progress=lambda what, done, total: progress.step(done, total, what),
        seed=seed,
    )
    progress.stage("weighing the evidence")
    names = [name for name in models if name.startswith("oracle")]
    given = {"unlearned": model, "original": original, **dict(zip(names, oracles, strict=True))}
    paths = {name: str(model_path(m)) for name, m in given.items() if isinstance(m, str | Path)}
    report = RunReport(
        title=title or f"Audit of {request.name}",
        created=facts.now(),
        request=summary.request_summary(request),
        removal_level=level,  # type: ignore[arg-type]
        models={name: summary.model_summary(m, paths.get(name, "")) for name, m in models.items()},
        versions=facts.versions(),
        hardware=facts.hardware(),
        seeds={"audits": seed},
        notes=summary.limit_notes(request, limits, seed),
    )
    return conclude(report, request, result, verdict)


def conclude(
    report: RunReport, request: DeletionRequest, result: AuditResult, settings: VerdictSettings | None = None
) -> AuditReport:
    """Judge what audits found and put it into a report that has everything else.

    Args:
        report: with models, request and removal level.
        request: what was asked.
        result: of the audits.
        settings: of the verdict.
    """
    evidence = [e for finding in result.findings for e in finding.evidence]
    crashed = [finding.audit for finding in result.crashed]
    verdict = decide(evidence, removal_level=report.removal_level, crashed=crashed, settings=settings)
    full = replace(
        report,
        verdict=verdict.to_dict(),
        findings=result.findings,
        audits=summary.audit_summaries(result.findings),
        samples=summary.samples(request, result.samples),
        cost={**report.cost, "proving": summary.proving_cost(result)},
        notes=[*report.notes, *summary.crash_notes(result.findings), *summary.no_data_notes(result.findings)],
    )
    return AuditReport(result.findings, verdict, result.counts, result.cost, full)
