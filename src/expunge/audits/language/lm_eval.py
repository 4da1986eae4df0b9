"""Utility suites of the lm-eval harness, run on the models as they are in memory.

The harness is handed the model together with its tokenizer and a batch size. Handed a bare model, it goes by the name
that the model once had for its tokenizer and asks one request at a time, whatever batch size it is told elsewhere.

Tasks read their data from the hub unless they are the user's own (``include``); whatever is named is fetched, nothing
else. Tasks that need code from the hub are refused by the harness.

Source: Gao et al., A framework for few-shot language model evaluation (lm-evaluation-harness).
"""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, field_validator

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.observations import Observations
from expunge.errors import BadInput, MissingExtra, Problem
from expunge.registry import near_names

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Z = 1.959964  # of a normal interval of 95 %


class LMEval(Audit):
    """Scores of lm-eval tasks per model."""

    id = "lm_eval"
    title = "What can the model still do, by the tasks of the lm-eval harness?"
    default = False
    paper = "Gao et al., A framework for few-shot language model evaluation (10.5281/zenodo.5371628)"

    class Config(AuditConfig):
        """Settings of the lm-eval audit."""

        tasks: tuple[str, ...] = Field((), description="names of tasks or groups; without one there is nothing to run")
        include: Path | None = Field(None, description="folder of tasks of one's own, as YAML")
        shots: int | None = Field(None, ge=0, description="solved examples shown first; each task's own if left out")
        limit: int | None = Field(None, ge=1, description="documents of each task at most")
        batch_size: int = Field(16, ge=1, description="requests per forward pass")

        @field_validator("include")
        @classmethod
        def _is_folder(cls, path: Path | None) -> Path | None:
            if path is not None and not path.is_dir():
                raise ValueError(f"'{path}' is not a folder; give one with task files")
            return path

    def prepare(self, seen: Observations) -> None:
        if not self.config.tasks:
            return
        if importlib.util.find_spec("lm_eval") is None:
            raise MissingExtra(
                Problem("audit lm_eval", "needs the lm-eval harness", "pip install 'expunge[lm-eval]', or leave it out")
            )
        known = self._manager.all_tasks
        problems = [
            Problem("audit lm_eval, tasks", f"'{name}' is not a task", near_names(name, known))
            for name in self.config.tasks
            if name not in known
        ]
        if problems:
            raise BadInput(problems)

    @cached_property
    def _manager(self) -> Any:
        from lm_eval.tasks import TaskManager

        if self.config.include is not None:
            # Reading the thousands of tasks of the harness takes a while and is left out where none is asked for.
            own = TaskManager(include_path=str(self.config.include), include_defaults=False)
            if set(self.config.tasks) <= set(own.all_tasks):
                return own
        return TaskManager(include_path=None if self.config.include is None else str(self.config.include))

    def run(self, seen: Observations) -> Finding:
        if not self.config.tasks:
            return Finding(self.id, "no data", note="no task is named: set tasks")
        self.prepare(seen)
        found: dict[int, dict[str, Estimate]] = {}
        for model in seen.models.values():
            if id(model) not in found:
                found[id(model)] = _estimates(self._evaluate(model))
        names = list(dict.fromkeys(name for estimates in found.values() for name in estimates))
        if not names:
            return Finding(self.id, "no data", note="the tasks gave no number")
        nothing = Estimate(None, note="the task gave no number for this model")
        return Finding(
            self.id,
            scalars=[Scalar(name, name.replace("/", ": "), "as the task defines it") for name in names],
            estimates={
                name: {key: found[id(model)].get(key, nothing) for key in names} for name, model in seen.models.items()
            },
            attempted={
                "tasks": list(self.config.tasks),
                "shots": self.config.shots,
                "limit": self.config.limit,
                "batch size": self.config.batch_size,
            },
            note="intervals are normal, from the standard errors of the harness",
        )

    def _evaluate(self, model: CausalLM) -> Mapping[str, Any]:
        from lm_eval import simple_evaluate

        with model.asked(), _luck_untouched():
            results = simple_evaluate(
                harness_model(model, self.config.batch_size),
                tasks=list(self.config.tasks),
                num_fewshot=self.config.shots,
                limit=self.config.limit,
                task_manager=self._manager,
                bootstrap_iters=100,
                log_samples=False,
                verbosity="ERROR",
            )
        return dict(results or {})


def harness_model(model: CausalLM, batch_size: int) -> Any:
    """Return the harness's view of a model: its own weights and tokenizer, with requests in batches.

    Args:
        model: the model; it is not copied.
        batch_size: requests per forward pass.
    """
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        batch_size=batch_size,
        max_length=model.encoder.max_length,
        backend="causal",
        trust_remote_code=False,
    )


def _estimates(results: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return ``task/metric`` -> estimate from the harness's results."""
    out = {}
    for task, row in results.get("results", {}).items():
        n = int(results.get("n-samples", {}).get(task, {}).get("effective", 0))
        for key, value in row.items():
            metric, _, filtered = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float) or isinstance(value, bool):
                continue
            if not filtered:  # sizes and names
                continue
            name = f"{task}/{metric}" if filtered == "none" else f"{task}/{metric} ({filtered})"
            error = row.get(f"{metric}_stderr,{filtered}")
            known = isinstance(error, int | float) and math.isfinite(error)
            low, high = (value - Z * error, value + Z * error) if known else (None, None)
            out[name] = Estimate(float(value), low, high, n)
    return out


@contextmanager
def _luck_untouched() -> Iterator[None]:
    """The harness seeds every generator; put them back as they were."""
    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)
