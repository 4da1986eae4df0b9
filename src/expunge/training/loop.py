"""The one training loop: any objective, on one process or many, stoppable, resumable, reproducible."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor, nn

from expunge.errors import BadInput, MissingExtra, Problem
from expunge.selections.base import Mask
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.examples import EncodedExamples
from expunge.tasks.statistics import Statistics
from expunge.training.checkpoint import (
    gather_state,
    latest_checkpoint,
    optimizer_state,
    remove_older,
    restore_state,
    trained_weights,
    write_checkpoint,
)
from expunge.training.dealing import Dealer, MicroBatch
from expunge.training.identity import fingerprint
from expunge.training.journal import Journal
from expunge.training.keeping import Keeper
from expunge.training.masking import MaskedWeights
from expunge.training.objective import Objective, Stream, Term
from expunge.training.plan import Plan, Step, draw, learning_rate_factor
from expunge.training.probe import Probe, ProbePoint
from expunge.training.reference import ReferenceModel
from expunge.training.settings import TrainSettings
from expunge.training.sharding import fill, hollow, shard

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass
class TrainResult:
    """What the loop did.

    Attributes:
        steps: optimiser steps done.
        kept_step: the step whose weights the model now has.
        stop_reason: why it ended.
        diverged: whether it ended because of NaN, inf or a collapse.
        history: one record per step: step, epoch, learning rate, gradient norm, each term's value.
        probes: what the in-training audits saw.
        probe_target: the forget level that was aimed at, in nats per token, if any.
        cost: what was spent on training; ``probe_cost`` on the in-training audits.
        resumed_from: the step a resumed run continued from, or None.
    """

    steps: int = 0
    kept_step: int = 0
    stop_reason: str = "all steps done"
    diverged: bool = False
    history: list[dict[str, float]] = field(default_factory=list, repr=False)
    probes: list[ProbePoint] = field(default_factory=list, repr=False)
    probe_target: float | None = None
    cost: Cost = field(default_factory=Cost)
    probe_cost: Cost = field(default_factory=Cost)
    resumed_from: int | None = None


def train(
    task: Task,
    objective: Objective,
    streams: Mapping[Stream, EncodedExamples],
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    mask: Mask | None = None,
    merge: bool = True,
    probe: Probe | None = None,
    progress: Progress | None = None,
    identity: str = "",
) -> TrainResult:
    """Minimise an objective over the task's weights, in place.

    The result does not depend on how a step is split into micro-batches or dealt to processes (up to rounding), and a
    run that is killed and started again on the same folder ends with the same bytes.

    Args:
        task: the model; its weights are changed.
        objective: what to minimise.
        streams: encoded examples of every stream the objective reads.
        settings: how.
        folder: where the log, the reference cache and checkpoints go; None keeps everything in memory.
        mask: which weights may move; everything outside stays bitwise as it was. None for all of them.
        merge: fold adapters into the weights at the end; without, a further run goes on with the same ones.
        probe: in-training audits; used every ``settings.stop.every`` steps.
        progress: called after every step with (steps done, steps in all, values).
        identity: what the objective's formulas depend on and does not show, such as a method's hyperparameters; a
            folder that holds the checkpoints of another objective, other examples or another model is refused.

    Returns:
        What was done. The task's model then has the kept weights, adapters merged.

    Raises:
        BadInput: a stream is missing or empty, the objective has no active term, or a tracker cannot be used.
        MissingExtra: a tracker is not installed.
    """
    problems = [
        Problem(f"{s} set", "is needed by the objective and is not there", f"give {s} examples, or set its weight to 0")
        for s in objective.streams()
        if s not in streams or not len(streams[s])
    ]
    if not objective.active():
        problems.append(Problem("objective", "has no term with a weight other than 0", "raise one of the weights"))
    if mask is not None and settings.lora is not None:
        problems.append(Problem("select", "chooses among all weights, and adapters are trained", "leave one out"))
    if settings.sharding != "none" and any(part is not None for part in (mask or {}).values()):
        problems.append(Problem("select", "cannot be enforced on weights that are split up", "set sharding=none"))
    if settings.trackers and folder is None:
        problems.append(Problem("trackers", "need a folder to write to", "give one, or leave them out"))
    if problems:
        raise BadInput(problems)
    for tracker in settings.trackers:
        if importlib.util.find_spec(tracker) is None:
            extra = "wandb" if tracker == "wandb" else "trackers"
            raise MissingExtra(Problem("trackers", f"{tracker} is not installed", f"pip install 'expunge[{extra}]'"))
    with torch.random.fork_rng():
        return _Run(task, objective, streams, settings, folder, mask, probe, progress, identity).go(merge)


class _Run:
    """One run of the loop; exists to share state between its parts."""

    def __init__(
        self,
        task: Task,
        objective: Objective,
        streams: Mapping[Stream, EncodedExamples],
        settings: TrainSettings,
        folder: Path | None,
        mask: Mask | None,
        probe: Probe | None,
        progress: Progress | None,
        identity: str,
    ):
        self.task, self.objective, self.settings = task, objective.own(), settings
        self.folder, self.probe, self.progress = folder, probe if settings.stop.every else None, progress
        self.streams, self.mask = {s: streams[s] for s in objective.streams()}, mask
        self.plan = Plan(
            self.streams,
            objective.anchor,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            seed=settings.seed,
        )
        # The library keeps one device per process for good; a later run may be on another.
        if PartialState._shared_state and PartialState().num_processes == 1:
            AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(
            cpu=task.device.type == "cpu",
            mixed_precision="no",  # settings.precision decides, so that a recipe alone says what was run
            log_with=list(settings.trackers) or None,
            project_dir=str(folder / "trackers") if folder else None,
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.result = TrainResult()
        self.dealer = Dealer(task, self.objective, self.streams, settings, self.rank, self.world)
        self.moving = self.objective.moving()
        self.keeper = Keeper(task, settings, self.probe, self.result, folder)
        self.journal = Journal(folder if self.rank == 0 else None, settings, self.accelerator)
        self.hollow: nn.Module | None = None
        self.seen: dict[str, Tensor] = {}  # (sum, divisor) of the terms whose weights move
        self.checkpointed = -1  # the step of the newest checkpoint
        # What was spent: before this process resumed, on probes, and what the task's account said at the start.
        self.earlier, self.probe_cost, self.before = Cost(), Cost(), task.cost.snapshot()
        self.began = time.perf_counter()
        self.identity = self._identify(identity) if folder is not None else ""

    # ---- setting up ------------------------------------------------------------------------------------------------

    def _identify(self, given: str) -> str:
        """Hash what this run is: objective, examples and starting weights."""
        shown = [repr((t.name, t.streams, t.reduction, t.weight, t.positions, t.blocks)) for t in self.objective.terms]
        if len(self.objective.turns) > 1:
            shown.append(repr((self.objective.turns, [t.turn for t in self.objective.terms])))
        return fingerprint(self.task, self.streams, given, *shown)

    def _prepare(self) -> None:
        task, settings = self.task, self.settings
        torch.manual_seed(draw(settings.seed, "adapters") % 2**63)
        if settings.lora is not None and not hasattr(task.model, "disable_adapter"):
            lora = settings.lora
            task.wrap_lora(lora.rank, lora.alpha, lora.dropout, lora.targets)
        cache = None
        if self.folder is not None:
            suffix = "" if self.world == 1 else f"-{self.rank}-of-{self.world}"
            cache = self.folder / f"reference{suffix}.safetensors"
        needed = any(map(self.objective.needs_reference, self.streams))
        key = f"{self.identity} {settings.model_dump_json()}"
        with self._autocast():
            used = self.dealer.used(self.plan) if needed or self.objective.teacher is not None else {}
            self.reference = ReferenceModel(task, self.objective, self.streams, used, cache, key)
            self.teacher = self._teacher(used)
        task.model.train(not self.objective.evaluation)
        self.masked = MaskedWeights(task.model, self.mask)
        if settings.sharding == "fully_shard":
            self.hollow = hollow(task.model)
            shard(task.model, self.world, task.device)
        # A forward pass that ends early is one that the library's wrapper does not see the end of.
        self.wrapped = self.world > 1 and self.hollow is None and all(map(self.objective.reads_logits, self.streams))
        self.forward: nn.Module = self.accelerator.prepare_model(task.model) if self.wrapped else task.model
        self.trained = trained_weights(task.model)
        sharded = any(hasattr(p, "full_tensor") for p in self.trained.values())
        common: dict[str, Any] = {
            "lr": settings.learning_rate,
            "foreach": False if sharded else None,
            "fused": None if sharded else True,
        }
        self.optimizers: list[torch.optim.Optimizer] = []
        for _ in self.objective.turns:
            weights = self.masked.groups(self.trained, settings.weight_decay)
            if settings.optimizer == "sgd":
                self.optimizers.append(torch.optim.SGD(weights, momentum=settings.momentum, **common))
            else:
                self.optimizers.append(torch.optim.AdamW(weights, **common))

    def _teacher(self, used: Mapping[Stream, Sequence[int]]) -> ReferenceModel | None:
        teacher = self.objective.teacher
        if teacher is None:
            return None
        before = teacher.cost.snapshot()
        remembered = ReferenceModel(teacher, self.objective.as_taught(), self.streams, used, payer=self.task)
        self.task.cost += teacher.cost - before
        return remembered

    # ---- running ---------------------------------------------------------------------------------------------------

    def go(self, merge: bool) -> TrainResult:
        with self.task.cost.measured():
            self._prepare()
            first = self._resume()
            self.journal.open_trackers()
            # A level that is reached already needs no step.
            finished = first == 0 and self._should_stop(0)
            for number in range(first, self.plan.total):
                if finished or not self._step(number):
                    break
                done = number + 1
                if self._should_stop(done):
                    break
                if self.settings.checkpoint_every and done % self.settings.checkpoint_every == 0:
                    self._checkpoint(done)
            self.keeper.settle()
            if self.folder is not None and self.rank == 0:
                remove_older(self.folder / "checkpoints")
        self.journal.close_trackers()
        if self.hollow is not None:
            fill(self.hollow, self.task.model, self.task.device)
            self.task.model = self.hollow
        if merge:
            self.task.merge_lora()
        self.masked.release(self.task.model)
        self.task.model.eval()
        self.result.cost, self.result.probe_cost = self._spent(), self.probe_cost
        self.result.probes = self.probe.points if self.probe else []
        self.result.probe_target = self.probe.target if self.probe else None
        return self.result

    def _step(self, number: int) -> bool:
        """Do one optimiser step, turn by turn; return False if the loss or gradient broke."""
        step = self.plan.step(number)
        factor = learning_rate_factor(number, self.plan.total, self._warmup(), self.settings.schedule)
        # Dropout must not depend on what ran before, or a resumed run would differ.
        torch.manual_seed(draw(self.settings.seed, "step", number, self.rank) % 2**63)
        weights = {f"weight/{name}": weight.value for name, weight in self.moving.items()}
        values: dict[str, float] = {}
        norms: list[float] = []
        for turn, optimizer in enumerate(self.optimizers):
            rate = self.settings.learning_rate * factor * self.objective.turns[turn]
            found, norm = self._gradient(step, turn)
            total = sum(found.values())
            if not (math.isfinite(total) and math.isfinite(norm)):
                optimizer.zero_grad(set_to_none=True)
                what = "loss" if not math.isfinite(total) else "gradient norm"
                self.result.stop_reason = (
                    f"diverged: the {what} became {total if what == 'loss' else norm} at step {number + 1}; "
                    "lower learning_rate or the weight of the forget term"
                )
                self.result.diverged = True
                return False
            if turn == 0 and self.folder is not None and self.rank == 0 and number == self.checkpointed:
                # The weights of the newest checkpoint have just given a finite loss: older ones can go.
                remove_older(self.folder / "checkpoints")
            self._descend(optimizer, rate)
            if turn == 0 and self.objective.penalty is not None:
                with self.masked.held():
                    self.objective.penalty.after_step(self.trained, rate, number / self.plan.total)
            values |= found
            norms.append(norm)
        self._move("step", step.epoch)
        self.result.steps = self.result.kept_step = number + 1
        record: dict[str, float] = {
            "step": number + 1,
            "steps": self.plan.total,
            "epoch": step.epoch,
            "learning_rate": self.settings.learning_rate * factor,
            "gradient_norm": norms[0],
            **{f"gradient_norm/turn_{turn}": norm for turn, norm in enumerate(norms) if turn},
            "loss": sum(values.values()),
            **{f"loss/{name}": value for name, value in values.items()},
            **weights,
        }
        self.result.history.append(record)
        self.journal.record(record)
        if self.progress is not None and self.rank == 0:
            self.progress(number + 1, self.plan.total, record)
        return True

    def _gradient(self, step: Step, turn: int) -> tuple[dict[str, float], float]:
        """Put the gradient of one turn's terms into the weights; return the terms' values and the gradient's norm."""
        components = self.dealer.components[turn]
        work = [(g, terms, chosen) for g, terms in components for chosen in self.dealer.deal(step, g)]
        joined = {g: self.dealer.joins(step, g) for g, _ in components}
        sums: dict[str, Tensor] = {}
        for k, (group, terms, chosen) in enumerate(work):
            with self._sync(last=k == len(work) - 1), self._autocast():
                loss = self._loss(step, terms, chosen, joined[group], sums)
                if loss.requires_grad:
                    loss.backward()
            self._move("micro_batch", step.epoch)
        if all(p.grad is None for p in self.trained.values()):
            what = "reaches none of the weights that may move"
            raise BadInput(Problem("objective", what, "let other weights move, or give terms that depend on these"))
        if self.world > 1 and self.hollow is None and not self.wrapped:
            self._average_gradients()
        if turn == 0 and (penalty := self.objective.penalty) is not None:
            sums[penalty.name] = penalty.add_gradient(self.trained, step.number / self.plan.total) / self.world
        values = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="sum").tolist()
        self.masked.mask_gradients()
        return dict(zip(sums, values, strict=True)), self._clip()

    def _descend(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        """Let the weights follow their gradients."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        if self.settings.optimizer == "sgd":
            self.masked.add_decay(self.settings.weight_decay)
        else:
            self.masked.decay(rate * self.settings.weight_decay)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _loss(
        self,
        step: Step,
        terms: Sequence[Term],
        chosen: MicroBatch,
        joined: bool,
        sums: dict[str, Tensor],
    ) -> Tensor:
        idle = not any(chosen.values())
        if idle:
            chosen = {stream: [0] for stream in chosen}
        group = [s for s, positions in chosen.items() if positions]
        seed = draw(self.settings.seed, "varied", step.number)
        parts = {
            s: self.task.varied(self.streams[s].take([step.examples[s][p] for p in chosen[s]]), seed) for s in group
        }
        stats = dict(zip(group, self._forward(group, parts, joined), strict=True))
        for stream in group:
            if self.teacher is not None:
                one = stats[stream]
                self.teacher.attach(one, stream, parts[stream])
                one.teacher_logits, one.reference_logits = one.reference_logits, None
                one.teacher_blocks, one.reference_blocks = one.reference_blocks, {}
            self.reference.attach(stats[stream], stream, parts[stream])
        loss = torch.zeros((), device=self.task.device)
        for term in terms:
            if not set(term.streams) <= set(group):
                continue  # nothing of its streams is in this micro-batch
            divisor = term.divisor(*self.dealer.sizes(step, term, tuple(chosen)))
            partial = term.partial_sum([stats[s] for s in term.streams]) * (0 if idle else 1)
            value = term.factor * partial / divisor
            if term.name in self.moving:
                self._note(term, partial.detach(), divisor, 0 if idle else self._own_divisor(term, stats))
            sums[term.name] = sums.get(term.name, torch.zeros((), device=value.device)) + value.detach()
            loss = loss + value
        # Gradients are averaged over processes; the divisor already counts the examples of all of them.
        return loss * self.world

    def _own_divisor(self, term: Term, stats: Mapping[Stream, Statistics]) -> int:
        """What a micro-batch's sum is divided by for its own mean."""
        return term.divisor(*stats[term.streams[0]].sizes(term.positions))

    def _note(self, term: Term, partial: Tensor, whole: int, own: int) -> None:
        """Remember what a moving weight's term was, until the weight moves."""
        per_step = self.moving[term.name].per == "step"
        seen = torch.stack([partial, partial.new_tensor(whole if per_step else own)])
        before = self.seen.get(term.name)
        # The step's divisor is the same in every micro-batch and process.
        self.seen[term.name] = seen if before is None else torch.stack([before[0] + seen[0], seen[1]])

    def _move(self, per: str, epoch: int) -> None:
        """Let the weights move that do so now."""
        for name, weight in self.moving.items():
            if weight.per == per and name in self.seen:
                total, count = self.accelerator.reduce(self.seen.pop(name), reduction="sum").tolist()
                weight.update(total / (count / self.world if per == "step" else count), epoch)

    def _forward(self, group: Sequence[Stream], parts: Mapping[Stream, EncodedExamples], joined: bool) -> list[Any]:
        if not joined:
            return [self._statistics(s, parts[s]) for s in group]
        joint = parts[group[0]]
        for stream in group[1:]:
            joint = joint + parts[stream]
        return self._statistics(group[0], joint).split([len(parts[s]) for s in group])

    def _statistics(self, stream: Stream, batch: EncodedExamples) -> Statistics:
        positions, blocks, logits = self.dealer.reads(stream)
        hidden = self.objective.hidden(stream)
        return self.task.statistics(
            batch,
            positions=positions,
            forward=self.forward,
            hidden=hidden,
            blocks=blocks,
            logits=logits,
            rows_only=self.hollow is None,  # parts of a block cannot be tried where its weights are split up
        )

    def _sync(self, *, last: bool) -> AbstractContextManager[Any]:
        if self.world == 1:
            return nullcontext()
        if not self.wrapped and self.hollow is None:
            return nullcontext()  # gradients are averaged once, after the last micro-batch
        if hasattr(self.forward, "set_requires_gradient_sync"):
            cast("Any", self.forward).set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.forward)

    def _average_gradients(self) -> None:
        for parameter in self.trained.values():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "bf16":
            return torch.autocast(self.task.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _clip(self) -> float:
        limit = self.settings.clip_norm or math.inf
        norm: Any = torch.nn.utils.clip_grad_norm_(list(self.trained.values()), limit)
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)

    def _warmup(self) -> int:
        if self.settings.warmup == "epoch":
            return min(self.plan.steps_per_epoch, self.plan.total // 2)
        return int(self.settings.warmup * self.plan.total)

    # ---- looking, keeping, resuming --------------------------------------------------------------------------------

    def _spent(self) -> Cost:
        """What went into training so far, without the probes, in this process and those that it continues."""
        spent = self.task.cost - self.before
        spent.seconds = time.perf_counter() - self.began
        return self.earlier + spent - self.probe_cost

    def _look(self, step: int) -> None:
        assert self.probe is not None
        before = self.task.cost.snapshot()
        spent = Cost()
        with spent.measured():
            reduce = (lambda t: self.accelerator.reduce(t, reduction="sum")) if self.world > 1 else None
            point = self.probe.look(self.task, step, self.rank, self.world, reduce)
        self.journal.record({"probe": True, **point.to_dict()})
        self.keeper.consider(point)
        counted = self.task.cost - before
        counted.seconds, counted.peak_bytes = spent.seconds, spent.peak_bytes
        self.probe_cost += counted

    def _should_stop(self, done: int) -> bool:
        """Audit a probe where it is due, and say whether a stopping rule holds; the reason goes into the result."""
        if self.probe is None or not (done % self.settings.stop.every == 0 or done == self.plan.total):
            return False
        self._look(done)
        reason = self.probe.verdict()
        if reason is None:
            return False
        self.result.stop_reason = reason
        self.result.diverged = reason.startswith("collapsed")
        return True

    def _checkpoint(self, done: int) -> None:
        if self.folder is None:
            return
        state = gather_state(self.task.model, self.optimizers[0])
        for turn, optimizer in enumerate(self.optimizers[1:], 1):
            state |= {f"turn{turn}/{k}": v for k, v in optimizer_state(self.task.model, optimizer).items()}
        if self.keeper.best is not None:
            state |= {f"best/{k}": v for k, v in self.keeper.best.items()}
        facts = {
            "step": done,
            "history": self.result.history,
            "probes": [p.to_dict() for p in self.probe.points] if self.probe else [],
            "probe_target": self.probe.target if self.probe else None,
            "settings": self.settings.model_dump(mode="json"),
            "identity": self.identity,
            "weights": {name: weight.value for name, weight in self.moving.items()},
            "cost": (self._spent() + self.probe_cost).to_dict(),
            "probe_cost": self.probe_cost.to_dict(),
        }
        self.checkpointed = done
        if self.rank == 0:
            write_checkpoint(self.folder / "checkpoints", state, facts)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        stored = latest_checkpoint(self.folder / "checkpoints") if self.folder else None
        if stored is None:
            self._begin_log()
            return 0
        state, facts = stored
        other = None
        if facts["settings"] != self.settings.model_dump(mode="json"):
            other = "other settings"
        elif facts["identity"] != self.identity:
            other = "another method, other examples or another model"
        if other is not None:
            raise BadInput(Problem(str(self.folder), f"holds checkpoints of a run with {other}", "use another folder"))
        self.keeper.best = {k.removeprefix("best/"): v for k, v in state.items() if k.startswith("best/")} or None
        for turn, optimizer in enumerate(self.optimizers):
            prefix = f"turn{turn}/" if turn else ""
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            restore_state(self.task.model, optimizer, {**state, **own})
        self.result.history = facts["history"]
        for name, weight in self.moving.items():
            weight.value = float(facts["weights"][name])
        if self.probe is not None:
            self.probe.points = [ProbePoint(**p) for p in facts["probes"]]
            self.probe.target = facts["probe_target"]
        step = int(facts["step"])
        self.result.steps = self.result.kept_step = self.result.resumed_from = step
        self.checkpointed = step
        # What was read again from the checkpoint and the cache cost nothing but time.
        self.earlier, self.probe_cost = Cost(**facts["cost"]), Cost(**facts["probe_cost"])
        self._begin_log()
        return step

    def _begin_log(self) -> None:
        looks = [{"probe": True, **p.to_dict()} for p in (self.probe.points if self.probe else [])]
        self.journal.begin([*self.result.history, *looks])
