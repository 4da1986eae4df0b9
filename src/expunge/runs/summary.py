"""From what a run has in its hands to what its report shows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datasets import Dataset

from expunge.audits.base import Finding
from expunge.audits.suite import AUDITS, AuditResult
from expunge.methods.base import Unlearned
from expunge.reports.report import AuditSummary, ModelSummary, PathPoint, RequestSummary, Sample, Training
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE, place
from expunge.requests.request import DeletionRequest
from expunge.runs.facts import weights_sha256
from expunge.tasks.cost import Cost

# Questions of a set that a report quotes, and points of a curve that it draws.
QUOTED = {"forget": 40, "retain": 20, "holdout": 20}
DRAWN = 400
# Audits read at least this many examples of the sets that are not to be forgotten.
AT_LEAST = 100
# With this share of the original's trace left on every test, forgetting has hardly begun.
HARDLY = 0.9


def request_summary(request: DeletionRequest) -> RequestSummary:
    """Return the sizes of the sets and the fingerprint."""
    sizes = {role: len(examples) for role, examples in request.sets().items()}
    return RequestSummary(
        name=request.name,
        scenario=request.scenario,
        forget=sizes["forget"],
        retain=sizes.get("retain"),
        holdout=sizes.get("holdout"),
        fingerprint=request.fingerprint,
    )


def model_summary(model: Any, path: str = "") -> ModelSummary:
    """Return where a model is, the hash of its weights and how many it has."""
    try:
        parameters = sum(p.numel() for _, p in model.named_parameters())
    except Exception:  # a wrapped model need not have any
        parameters = None
    return ModelSummary(path or str(model.source), weights_sha256(path) if path else "", parameters)


def audit_summaries(findings: Sequence[Finding]) -> dict[str, AuditSummary]:
    """Return the question, a sentence, the paper and the family of every audit that was run."""
    known = set(AUDITS.names())
    found = {f.audit: AUDITS.get(f.audit) for f in findings if f.audit in known}
    return {
        name: AuditSummary(
            audit.title, (inspect.getdoc(audit) or "").split("\n\n")[0].replace("\n", " "), audit.paper, audit.family
        )
        for name, audit in found.items()
    }


def samples(request: DeletionRequest, answers: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[Sample]:
    """Quote the first questions of each set with what every model answered, in the request's order."""
    quoted: list[Sample] = []
    for role, examples in request.sets().items():
        given = answers.get(role, {})
        found = [(i, identity) for i, identity in enumerate(examples["id"]) if identity in given]
        for index, identity in found[: QUOTED[role]]:
            asked, true = question(examples, index)
            quoted.append(Sample(identity, asked, true, role, dict(given[identity])))
    return quoted


def question(examples: Dataset, index: int) -> tuple[str, str]:
    """Return what an example asks of a model and the true answer, in words; an image is named by where it is from."""
    shown = examples.remove_columns([c for c in ("image",) if c in examples.column_names])
    row = shown[index]
    if "prompt" in row:
        return row["prompt"], row["answer"]
    true = row.get("label", row.get("target"))
    if "image" in examples.column_names:
        return f"the image {place(examples, index)}", str(true)
    if "text" in row:
        return row["text"], str(true)
    hidden = {"id", "label", "target", SOURCE_FILE, SOURCE_LINE}
    return ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden), str(true)


def audit_limits(request: DeletionRequest, asked: Mapping[str, int] | None) -> dict[str, int]:
    """Return how many examples of each set audits read at most.

    By default every example to forget, and of the retain and holdout set as many as there are to forget (at least
    100), so that proving does not cost more than forgetting.
    """
    sets = request.sets()
    default = max(AT_LEAST, len(sets["forget"]))
    limits = {role: default for role in sets if role != "forget"} | dict(asked or {})
    return {role: limit for role, limit in limits.items() if role in sets}


def limit_notes(request: DeletionRequest, limits: Mapping[str, int], seed: int) -> list[str]:
    """Say which sets were read in part."""
    sets = request.sets()
    return [
        f"Audits read {limit} of the {len(sets[role])} {role} examples, drawn by seed {seed}, the same for every model."
        for role, limit in limits.items()
        if limit < len(sets[role])
    ]


def crash_notes(findings: Sequence[Finding]) -> list[str]:
    """Say which audits crashed and why, and what follows for the verdict."""
    crashed = [f"{f.audit} ({f.note})" for f in findings if f.status == "crashed"]
    what = (
        f"Crashed: {', '.join(crashed)}. What would have been found is not known, so nothing is called removed or kept."
    )
    return [what] if crashed else []


def no_data_notes(findings: Sequence[Finding]) -> list[str]:
    """Say why each audit had nothing to say, where none at all speaks of the forget set."""
    if any(evidence.about == "forget" for f in findings for evidence in f.evidence):
        return []
    return [f"{f.audit} has no data: {f.note}." for f in findings if f.status == "no data"]


def still_notes(verdict: Mapping[str, Any], train: Mapping[str, Any] | None) -> list[str]:
    """Say what to change where training left nearly everything that the model knew of the forget set.

    Args:
        verdict: the verdict of a report.
        train: settings of training; None where nothing was trained.
    """
    left = [
        row["remaining"] for row in verdict.get("rows", []) if row["about"] == "forget" and row["result"] == "different"
    ]
    if not train or verdict.get("result") != "not removed" or not left or min(x or 0.0 for x in left) < HARDLY:
        return []
    longer = f"epochs (now {train['epochs']:g})"
    if train.get("max_steps"):
        longer = f"max_steps (now {train['max_steps']:g}; epochs: {train['epochs']:g})"
    return [
        f"Training hardly changed what the model knows of the forget set: at least {HARDLY:.0%} is left on every test "
        f"that tells. Train harder: raise learning_rate (now {train['learning_rate']:g}) or {longer}."
    ]


def proving_cost(result: AuditResult) -> dict[str, float]:
    """Return what the audits cost, over all models."""
    total = Cost()
    for cost in result.cost.values():
        total = total + cost
    # What is between the passes is spent too: bootstrap, statistics.
    total.seconds = result.seconds
    return total.to_dict()


def forgotten(outcome: Unlearned) -> dict[str, Any]:
    """Return plain values of everything that forgetting did, weights apart."""
    trained = outcome.training
    return {
        "method": outcome.method,
        "removal_level": outcome.removal_level,
        "config": outcome.config,
        "train": outcome.train,
        # What was done before the first step is part of forgetting: masks, statistics, answers that were written.
        "cost": (outcome.cost - trained.probe_cost if trained else outcome.cost).to_dict(),
        "probe_cost": (trained.probe_cost if trained else Cost()).to_dict(),
        "training": None
        if trained is None
        else {
            "steps": trained.steps,
            "kept_step": trained.kept_step,
            "stop_reason": trained.stop_reason,
            "diverged": trained.diverged,
            "history": trained.history,
            "probes": [asdict(point) for point in trained.probes],
            "probe_target": trained.probe_target,
            "resumed_from": trained.resumed_from,
        },
    }


def training_summary(done: Mapping[str, Any], model: Any) -> Training | None:
    """Return how forgetting went from what ``forgotten`` wrote; None where nothing was trained.

    Args:
        done: what ``forgotten`` returned.
        model: the model, which knows what its losses are called.
    """
    trained = done["training"]
    if trained is None:
        return None
    history = trained["history"]
    terms = [key for key in dict.fromkeys(k for record in history for k in record) if key.startswith("loss/")]
    every = max(1, -(-len(history) // DRAWN))
    drawn = [r for k, r in enumerate(history) if k % every == 0 or k == len(history) - 1]
    reason = trained["stop_reason"]
    if trained["kept_step"] != trained["steps"]:
        reason += f"; of {trained['steps']} steps, the weights after step {trained['kept_step']} were kept"
    return Training(
        loss={term.removeprefix("loss/"): [(int(r["step"]), r[term]) for r in drawn if term in r] for term in terms},
        path=[
            PathPoint(p["step"], p["forget_nll"], p["retain_nll"], kept=p["step"] == trained["kept_step"])
            for p in trained["probes"]
        ],
        forget_statistic=f"{model.loss} on the forget set ({model.unit})",
        retain_statistic=f"{model.loss} on the retain set ({model.unit})",
        forget_target=trained["probe_target"],
        stop_reason=reason,
    )
