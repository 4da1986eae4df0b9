"""Small trainings side by side, one core each, with progress read from their logs."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.runs.folder import FORGOTTEN, RunFolder
from expunge.runs.progress import Progress
from expunge.training.journal import LOG


@dataclass(frozen=True)
class Training:
    """A model to be trained in a process of its own.

    Attributes:
        folder: receives ``model/``, the log, resumable checkpoints and what was done.
        name: what progress calls it.
        data: role -> JSON lines file, read by the worker.
        tokenizer: folder of the tokenizer.
        shape: sizes of the model, see ``Shape``.
        settings: of the training loop.
        roles: which of the files it is trained on. ("retain",) beside a "forget" file is a retraining, recorded as one.
    """

    folder: Path
    name: str
    data: Mapping[str, Path]
    tokenizer: Path
    shape: Mapping[str, Any]
    settings: Mapping[str, Any]
    roles: tuple[Literal["forget", "retain"], ...]


def run_trainings(trainings: Sequence[Training], progress: Progress, workers: int | None = None) -> None:
    """Train every model that is not there yet, as many at a time as there are cores.

    Args:
        trainings: what to train.
        progress: hears of the steps of all of them together.
        workers: processes at a time; the number of usable cores by default.

    Raises:
        Exception: whatever stopped a training; the others go on from their checkpoints when asked again.
    """
    waiting = [t for t in trainings if not (t.folder / FORGOTTEN).is_file()]
    if not waiting:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(len(waiting), workers or cores)
    for training in waiting:
        if not (training.folder / "checkpoints").is_dir():
            (training.folder / LOG).unlink(missing_ok=True)
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: list[Future[None]] = [pool.submit(train_one, training) for training in waiting]
        try:
            while not all(f.done() for f in futures):
                failed = next((f for f in futures if f.done() and f.exception()), None)
                if failed is not None:
                    break
                _tell(waiting, progress)
                time.sleep(0.3)
            for future in futures:
                future.result()
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            raise
    _tell(waiting, progress)


def _tell(trainings: Sequence[Training], progress: Progress) -> None:
    done, total, said = 0, 0, []
    for training in trainings:
        step, steps = last_step(training.folder / LOG)
        done, total = done + step, total + (steps or 0)
        if step:
            said.append(f"{training.name} {100 * step // max(1, steps)}%")
    if total:
        progress.step(done, total, ", ".join(said))


def last_step(log: Path) -> tuple[int, int]:
    """Return (steps done, steps in all) from the end of a log."""
    try:
        with open(log, "rb") as handle:
            handle.seek(max(0, log.stat().st_size - 4096))
            lines = handle.read().decode("utf-8", "ignore").splitlines()
        record = json.loads(lines[-1])
        return int(record["step"]), int(record.get("steps", 0))
    except (OSError, ValueError, KeyError, IndexError):
        return 0, 0


def train_one(training: Training, progress: Callable[[int, int, Mapping[str, float]], None] | None = None) -> None:
    """Train one model and write it; runs in a worker process, which tells its progress by its log alone.

    Args:
        training: what to train.
        progress: called after every step, where it runs in the process of the caller.
    """
    import torch
    from transformers import AutoTokenizer

    from expunge.data.files import read_examples
    from expunge.methods.base import Unlearned
    from expunge.methods.run import unlearn
    from expunge.requests.request import DeletionRequest
    from expunge.runs.summary import forgotten
    from expunge.training.from_scratch import Shape, small_llama, train_small_llama
    from expunge.training.settings import TrainSettings

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(training.tokenizer, trust_remote_code=False)
    sets = {role: read_examples(str(path), role=role) for role, path in training.data.items()}
    shape = Shape(**training.shape)
    training.folder.mkdir(parents=True, exist_ok=True)
    if training.roles == ("retain",) and "forget" in sets:
        request = DeletionRequest(sets["forget"], sets["retain"])
        start = small_llama(tokenizer, shape, int(training.settings["seed"]))
        outcome = unlearn(
            start, request, "retrain", settings=training.settings, folder=training.folder, progress=progress
        )
    else:
        settings = TrainSettings(**training.settings)
        model, result = train_small_llama(
            [sets[role] for role in training.roles], tokenizer, shape, settings, folder=training.folder,
            progress=progress,
        )  # fmt: skip
        outcome = Unlearned(model, "training", "exact", train=settings.model_dump(mode="json"), training=result)
        outcome.cost = result.cost
    outcome.save(training.folder / "model")
    folder = RunFolder(training.folder)
    folder.write_json(FORGOTTEN, forgotten(outcome))
    folder.drop_checkpoints()
