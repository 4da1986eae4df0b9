"""One cell of the TOFU table: a method, a seed, a split; runs in a worker process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.audits.suite import AuditResult, run_audits
from expunge.benchmarks.tofu_data import TofuSplit, load_split
from expunge.methods.run import unlearn
from expunge.runs.shelf import Shelf
from expunge.tasks.causal_lm import CausalLM
from expunge.training.probe import measure

AUDITS = (
    "probability",
    "rouge",
    "truth_ratio",
    "extraction_strength",
    "exact_memorization",
    "forget_quality",
    "model_utility",
)


@dataclass(frozen=True)
class Cell:
    """What to run.

    Attributes:
        folder: receives ``result.json``.
        where: where the TOFU files are.
        split: name of the split.
        kept: kept rows in use, or None for all.
        method: id of a method, or "original" or "retrain" for a model that is only audited.
        seed: of the method.
        model: the model to start from, or the one to audit.
        oracle: the model to compare with.
        settings: of the method and of training.
        audited: kept and knowledge rows that audits read, each.
    """

    folder: Path
    where: str
    split: str
    kept: int | None
    method: str
    seed: int
    model: str
    oracle: str
    settings: Mapping[str, Any]
    audited: int


@lru_cache(maxsize=4)
def _split(where: str, name: str, kept: int | None) -> TofuSplit:
    return load_split(where, name, kept)


@lru_cache(maxsize=1)
def _shelf() -> Shelf:
    return Shelf()


def run_cell(cell: Cell) -> dict[str, Any]:
    """Run a cell, or read its result if it is there.

    Returns:
        The cell's numbers; also written to ``result.json``.
    """
    import torch

    done = cell.folder / "result.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    split, oracle = _split(cell.where, cell.split, cell.kept), _shelf().get(cell.oracle)
    assert isinstance(oracle, CausalLM)
    training: dict[str, Any] = {}
    if cell.method in ("original", "retrain"):
        task: CausalLM = CausalLM.load(cell.model)
    else:
        outcome = unlearn(
            _shelf().get(cell.model),
            split.train,
            cell.method,
            settings={**cell.settings, "seed": cell.seed},
            oracle=oracle,
        )
        assert isinstance(outcome.model, CausalLM)
        task = outcome.model
        training = {"seconds": outcome.cost.seconds, "flops": outcome.cost.flops}
        if outcome.training is not None:
            training |= {
                "steps": outcome.training.kept_step,
                "stop_reason": outcome.training.stop_reason,
                "diverged": outcome.training.diverged,
                "path": [p.to_dict() for p in outcome.training.probes],
            }
    forget_nll, forget_probability = measure(task, {"forget": task.encode(split.train.forget)})["forget"]
    oracle_nll = measure(oracle, {"forget": oracle.encode(split.train.forget)})["forget"][0]
    aimed = cell.settings.get("stop", {}).get("forget_target", "oracle")
    result = run_audits(
        {"unlearned": task, "oracle": oracle},
        split.audit,
        list(AUDITS),
        extra=split.knowledge,
        limits=dict.fromkeys(("retain", *split.knowledge), cell.audited),
        seed=0,
    )
    numbers: dict[str, Any] = {
        "split": cell.split,
        "method": cell.method,
        "seed": cell.seed,
        "forget_nll": forget_nll,
        "forget_probability": forget_probability,
        "oracle_nll": oracle_nll,
        "target_nll": oracle_nll if aimed == "oracle" else float(aimed),
        **_numbers(result),
        **training,
    }
    cell.folder.mkdir(parents=True, exist_ok=True)
    scratch = cell.folder / ".result.json"
    scratch.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    os.replace(scratch, done)
    return numbers


def _numbers(result: AuditResult) -> dict[str, float | None]:
    """Flatten every estimate of the audited model to ``audit/scalar``."""
    out: dict[str, float | None] = {}
    for finding in result.findings:
        if finding.status != "measured":
            out[f"{finding.audit}/{finding.status}"] = None
            continue
        estimates: Mapping[str, Estimate] = finding.estimates["unlearned"]
        for name, estimate in estimates.items():
            out[f"{finding.audit}/{name}"] = estimate.value
    return out
