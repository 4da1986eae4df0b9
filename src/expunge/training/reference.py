"""The model before unlearning, remembered instead of kept.

What objectives need of it never changes during a run, so it is computed once: the summed answer NLL per example (4
bytes), the last hidden rows of the answer tokens, from which one product with a copy of the head gives the logits, or
the rows of the block outputs that are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.encoding import length_batches
from expunge.tasks.examples import EncodedExamples
from expunge.tasks.statistics import Statistics
from expunge.training.objective import Objective, Stream

log = logging.getLogger(__name__)


class ReferenceModel:
    """What is remembered of the model before unlearning.

    Args:
        task: the model, not yet trained.
        objective: says what is needed, per stream.
        encoded: the streams.
        used: per stream, indices of the examples that this process will see.
        cache: file to keep what was computed in, so that a resumed run reads the same numbers; None for memory only.
        key: what the numbers depend on; a cache with another key is computed anew.
        payer: whose account a live model is put on; the task's own by default.
    """

    def __init__(
        self,
        task: Task,
        objective: Objective,
        encoded: Mapping[Stream, EncodedExamples],
        used: Mapping[Stream, Sequence[int]],
        cache: Path | None = None,
        key: str = "",
        payer: Task | None = None,
    ):
        self.task, self.payer = task, payer or task
        self.objective = objective
        self.positions = {s: objective.positions(s) for s in encoded}
        self.needs = {s: objective.reference(s) for s in encoded}
        self.blocks = {s: objective.reference_blocks(s) for s in encoded}
        self.hidden = {s: objective.hidden(s) for s in encoded}
        self.values: dict[str, Tensor] = {}
        self.head: dict[str, Tensor] = {}
        self.live: Any = None
        if not any(self._asks(s) for s in encoded):
            return
        if cache is not None and self._read(cache, key):
            return
        if (
            task.varies
            or any(self.positions[s] == "all" and (self.needs[s] == "rows" or self.blocks[s]) for s in encoded)
            or (not task.small_blocks and any(self.blocks.values()))
        ):
            # Padding rows depend on the batch they stand in, and augmented examples are never the same: only a live
            # model can give them.
            self._keep_live()
        else:
            self._remember(encoded, used)
        if cache is not None and self.live is None:
            cache.parent.mkdir(parents=True, exist_ok=True)
            scratch = cache.with_name(f"{cache.name}.writing")
            head = {f"head.{k}": v for k, v in self.head.items()}
            save_file({**self.values, **head}, scratch, metadata={"key": key})
            os.replace(scratch, cache)

    def _asks(self, stream: Stream) -> bool:
        """Whether anything of this model is needed on a stream."""
        return self.needs[stream] != "none" or bool(self.blocks[stream])

    def _keep_live(self) -> None:
        adapters = hasattr(self.task.model, "disable_adapter")
        self.live = self.task if adapters else self.task.copy()
        if not adapters:
            self.live.model.requires_grad_(False)
            self.live.model.eval()

    def _remember(self, encoded: Mapping[Stream, EncodedExamples], used: Mapping[Stream, Sequence[int]]) -> None:
        task = self.task
        task.model.eval()
        off = _adapters_off(task.model)
        checked = False
        with torch.no_grad(), off:
            for stream, need in self.needs.items():
                if not self._asks(stream):
                    continue
                layers = self.blocks[stream]
                examples = encoded[stream]
                wanted = sorted(set(used[stream]))
                lengths = [examples.length(i) for i in wanted]
                for batch in length_batches(lengths, task.tokens_per_forward, overhead=task.tokens_per_call):
                    part = examples.take([wanted[k] for k in batch])
                    stats = task.statistics(
                        part,
                        positions=self.positions[stream],
                        hidden=need == "rows",
                        blocks=layers,
                        logits=need != "none",
                        rows_only=True,
                    )
                    rows = torch.bincount(stats.example, minlength=len(part)).tolist()
                    for layer in layers:
                        for identity, piece in zip(part.ids, stats.blocks[layer].split(rows), strict=True):
                            self.values[f"block{layer}.{stream}.{identity}"] = piece.detach().clone()
                    if need == "none":
                        continue
                    for identity, value in zip(part.ids, stats.sequence_nll, strict=True):
                        self.values[f"nll.{stream}.{identity}"] = value.detach().clone()
                    if need != "rows":
                        continue
                    self.head = self.head or task.head_weights()
                    if not checked and not self._head_agrees(stats):
                        log.warning("the output head cannot be replayed on its own; keeping a copy of the whole model")
                        self.values.clear()
                        self._keep_live()
                        return
                    checked = True
                    assert stats.hidden is not None
                    for identity, piece in zip(part.ids, stats.hidden.split(rows), strict=True):
                        self.values[f"rows.{stream}.{identity}"] = piece.detach().clone()

    def _head_agrees(self, stats: Statistics) -> bool:
        if stats.hidden is None:
            return False
        replayed = self.task.head(stats.hidden, self.head)
        return bool(torch.allclose(replayed, stats.logits, rtol=1e-3, atol=1e-3))

    def _read(self, cache: Path, key: str) -> bool:
        """Read a cache if it is there and holds the numbers of this key."""
        if not cache.is_file():
            return False
        try:
            with safe_open(cache, "pt", device=str(self.task.device)) as file:
                if (file.metadata() or {}).get("key") != key:
                    return False
                stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:
            fix = "delete it; it is computed anew"
            raise BadInput(Problem(str(cache), f"is damaged: {error}", fix)) from error
        self.head = {k.removeprefix("head."): v for k, v in stored.items() if k.startswith("head.")}
        self.values = {k: v for k, v in stored.items() if not k.startswith("head.")}
        return True

    def attach(self, stats: Statistics, stream: Stream, batch: EncodedExamples) -> None:
        """Give a batch's statistics what the objective needs of the reference model."""
        need = self.needs[stream]
        if not self._asks(stream):
            return
        if self.live is not None:
            self._attach_live(stats, stream, batch)
            return
        stats.reference_blocks = {
            layer: self._rows(f"block{layer}", stream, stats.ids) for layer in self.blocks[stream]
        }
        if need == "none":
            return
        stats.reference_nll = torch.stack([self.values[f"nll.{stream}.{i}"] for i in stats.ids]).to(stats.logits.device)
        if need == "rows":
            rows = self._rows("rows", stream, stats.ids)
            stats.reference_logits = lambda part: self.task.head(rows[part], self.head)
            stats.reference_hidden = rows if self.hidden[stream] else None

    def _rows(self, what: str, stream: Stream, ids: Sequence[str]) -> Tensor:
        return torch.cat([self.values[f"{what}.{stream}.{i}"] for i in ids])

    def _attach_live(self, stats: Statistics, stream: Stream, batch: EncodedExamples) -> None:
        model = self.live.model
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), _adapters_off(model):
                seen = self.live.statistics(
                    batch,
                    positions=self.positions[stream],
                    hidden=self.hidden[stream],
                    blocks=self.blocks[stream],
                    logits=self.needs[stream] != "none",
                    rows_only=True,
                )
        finally:
            model.train(was_training)
        if self.live is not self.payer:
            self.payer.cost += self.live.cost
            self.live.cost = Cost()
        stats.reference_blocks, stats.reference_hidden = seen.blocks, seen.hidden
        if self.needs[stream] != "none":
            stats.reference_nll, stats.reference_logits = seen.sequence_nll, seen.logits.__getitem__


def _adapters_off(model: Any) -> AbstractContextManager[Any]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
