"""One cell of the TOFU table: a method, a seed, a split; runs in a worker process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from expunge.audits.base import Estimate
from expunge.audits.suite import AuditResult, run_audits
from expunge.benchmarks.tofu_data import TofuSplit, load_split
from expunge.methods.run import unlearn
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Prompt
from expunge.tasks.tokens import TokenScores
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


class Remembering(CausalLM):
    """A frozen model that remembers what it answered, so that an oracle is asked once and not once per cell."""

    def __init__(self, model: CausalLM):
        self.__dict__.update(model.__dict__)
        self._scored: dict[str, TokenScores] = {}
        self._said: dict[str, str] = {}

    def copy(self) -> CausalLM:
        """Not offered: a copy is made to be changed, and what it then says must not be recalled from here."""
        raise TypeError("a remembering model is frozen; load the model itself to change it")

    def score(self, pairs: Sequence[tuple[Prompt, str]]) -> list[TokenScores]:
        """Score the pairs that are new and recall the others."""
        keys = [json.dumps(pair) for pair in pairs]
        new = {k: pair for k, pair in zip(keys, pairs, strict=True) if k not in self._scored}
        self._scored.update(zip(new, super().score(list(new.values())), strict=True))
        return [self._scored[k] for k in keys]

    def generate(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: Sequence[int],
        *,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
    ) -> list[str]:
        """Continue the prompts that are new and recall the others; sampling is not remembered."""
        if temperature > 0:
            return super().generate(prompts, max_new_tokens, temperature=temperature, seed=seed)
        keys = [json.dumps([prompt, limit]) for prompt, limit in zip(prompts, max_new_tokens, strict=True)]
        new = {k: (p, n) for k, p, n in zip(keys, prompts, max_new_tokens, strict=True) if k not in self._said}
        said = super().generate([p for p, _ in new.values()], [n for _, n in new.values()])
        self._said.update(zip(new, said, strict=True))
        return [self._said[k] for k in keys]


@lru_cache(maxsize=4)
def _split(where: str, name: str, kept: int | None) -> TofuSplit:
    return load_split(where, name, kept)


@lru_cache(maxsize=1)
def _start(path: str) -> CausalLM:
    return CausalLM.load(path)


@lru_cache(maxsize=4)
def _frozen(path: str) -> Remembering:
    return Remembering(CausalLM.load(path))


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
    split, oracle = _split(cell.where, cell.split, cell.kept), _frozen(cell.oracle)
    training: dict[str, Any] = {}
    if cell.method in ("original", "retrain"):
        task: CausalLM = CausalLM.load(cell.model)
    else:
        outcome = unlearn(
            _start(cell.model), split.train, cell.method, settings={**cell.settings, "seed": cell.seed}, oracle=oracle
        )
        assert isinstance(outcome.model, CausalLM)
        assert outcome.training is not None
        task = outcome.model
        training = {
            "steps": outcome.training.kept_step,
            "stop_reason": outcome.training.stop_reason,
            "diverged": outcome.training.diverged,
            "seconds": outcome.cost.seconds,
            "flops": outcome.cost.flops,
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
