"""Methods that train in several stages: one objective after the other, each by the one training loop."""

from __future__ import annotations

import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from expunge.errors import BadInput, Problem
from expunge.methods.base import ObjectiveMethod, Run, Unlearned, selection_of
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, both, zero_outside
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.training.checkpoint import whole
from expunge.training.identity import fingerprint
from expunge.training.loop import TrainResult, train
from expunge.training.objective import Objective
from expunge.training.settings import LoraSettings

DONE = "done.safetensors"


@dataclass(frozen=True)
class Stage:
    """One stage of a method.

    Attributes:
        name: in logs and folders.
        objective: what it minimises.
        settings: training settings that differ from the run's, such as ``{"epochs": 1}``.
        confined: the weights that it trains, of those that may move; None for all of them.
    """

    name: str
    objective: Objective
    settings: Mapping[str, Any] = field(default_factory=dict)
    confined: Mask | None = None


class StagedMethod(ObjectiveMethod):
    """A method whose stages train the same weights one after the other.

    Each stage starts with a fresh optimiser and its own schedule. In a run folder every stage has a folder of its own
    with checkpoints, and leaves its weights there, so that a killed run goes on in the stage where it was. A rule of
    ``stop`` that holds in a stage ends the run.
    """

    @abstractmethod
    def stages(self, task: Task, run: Run) -> Sequence[Stage]:
        """Return the stages; ``task`` is the model before unlearning, which they may keep as a teacher."""

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Train a copy of the model through all stages.

        Raises:
            BadInput: see ``ObjectiveMethod.apply``; or a stage's weights in the folder are damaged, or of another run.
        """
        self.check(task, request)
        self._check_stop(run, request)
        selection = selection_of(run.train)
        if selection is not None:
            selection.check(task, request)
        model = self.start(task, run)
        if run.sparse is not None:
            zero_outside(model, run.sparse)
        self.adapt(model, request)
        before, started = model.cost.snapshot(), time.perf_counter()
        mask = both(self._selected(selection, model, request, run) if selection else None, run.sparse)
        stages = self.stages(task, run)
        names = list(dict.fromkeys(s for stage in stages for s in stage.objective.streams()))
        streams = {s: self.encode(s, model, request, run) for s in names}
        prepared = model.cost - before
        prepared.seconds = time.perf_counter() - started
        total = TrainResult(stop_reason="all stages done")
        spent = Cost()
        for number, stage in enumerate(stages):
            settings = run.train.model_copy(update=dict(stage.settings))
            folder = run.folder / "stages" / f"{number:02d}-{stage.name}" if run.folder else None
            identity, key = f"{self.id} {number} {stage.name} {self.config.model_dump_json()}", ""
            if folder is not None:
                key = fingerprint(model, streams, identity, settings.model_dump_json())
            if folder is not None and (folder / DONE).is_file():
                put_back(model, settings.lora, folder / DONE, key)
                total.resumed_from = total.steps
                continue
            probe = self.probe(model, request, run, settings)
            outcome = train(
                model,
                stage.objective,
                streams,
                settings,
                folder=folder,
                mask=both(mask, stage.confined),
                merge=False,
                probe=probe,
                progress=run.progress,
                identity=identity,
            )
            _add(total, outcome)
            spent += outcome.cost + outcome.probe_cost
            if outcome.diverged or (probe is not None and outcome.stop_reason != "all steps done"):
                total.stop_reason = f"{stage.name}: {outcome.stop_reason}"
                total.diverged = outcome.diverged
                break
            if folder is not None:
                keep_weights(model, folder / DONE, key)
        model.merge_lora()
        model.model.eval()
        model.source = f"{self.id} of {task.source}"
        return Unlearned(
            model=model,
            method=self.id,
            removal_level=self.removal_level,
            config={**self.config.model_dump(mode="json"), "stages": [s.name for s in stages], **run.notes},
            train=run.train.model_dump(mode="json"),
            training=total,
            cost=prepared + spent,
        )


def keep_weights(model: Task, file: Path, key: str) -> None:
    """Write what a stage left, adapters apart from the weights that they stand beside; atomic.

    Its checkpoints are not needed after that, and go.

    Args:
        model: after the stage.
        file: where its weights go.
        key: what the stage was: from the model before it, its examples and its settings.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_name(f".{file.name}")
    save_file({name: whole(value) for name, value in model.model.state_dict().items()}, scratch, {"key": key})
    os.replace(scratch, file)
    shutil.rmtree(file.parent / "checkpoints", ignore_errors=True)


def put_back(model: Task, lora: LoraSettings | None, file: Path, key: str) -> None:
    """Give a model what a finished stage left.

    Raises:
        BadInput: the file is damaged, or what another run left.
    """
    fix = "delete the folder of that stage; it is trained again"
    try:
        with safe_open(file, framework="pt") as stored:
            kept = (stored.metadata() or {}).get("key")
    except Exception as error:
        raise BadInput(Problem(str(file), f"is damaged: {error}", fix)) from error
    if kept != key:
        what = "holds the weights of a run with other settings, other examples or another model"
        raise BadInput(Problem(str(file), what, "use another folder"))
    if lora is not None and not hasattr(model.model, "disable_adapter"):
        model.wrap_lora(lora.rank, lora.alpha, lora.dropout, lora.targets)
    try:
        model.model.load_state_dict(load_file(file))
    except Exception as error:
        raise BadInput(Problem(str(file), f"is damaged: {error}", fix)) from error


def _add(total: TrainResult, outcome: TrainResult) -> None:
    """Append what a stage did to what the stages before it did."""
    shift = total.steps
    total.history += [{**record, "step": record["step"] + shift} for record in outcome.history]
    total.probes += [replace(point, step=point.step + shift) for point in outcome.probes]
    total.probe_target = outcome.probe_target
    total.steps += outcome.steps
    total.kept_step = shift + outcome.kept_step
    total.cost += outcome.cost
    total.probe_cost += outcome.probe_cost
    if outcome.resumed_from is not None:
        total.resumed_from = shift + outcome.resumed_from
