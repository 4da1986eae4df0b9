"""Prune first, then unlearn: a sparse model is nearer to the one that would be retrained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from expunge.errors import BadInput, Problem, collected
from expunge.methods.base import Method, MethodConfig, ObjectiveMethod, Run, Unlearned, settle
from expunge.methods.run import METHODS
from expunge.methods.stages import DONE, keep_weights, put_back
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask, Scope, zero_outside
from expunge.selections.magnitude import Magnitude, MagnitudeConfig, Rule
from expunge.tasks.base import Task
from expunge.tasks.cost import Cost
from expunge.tasks.kinds import KINDS
from expunge.training.identity import fingerprint
from expunge.training.loop import TrainResult, train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

# Settings of training that hold for the whole run and not for one of its stages.
SHARED = ("micro_batch_size", "precision", "share_forward", "sharding", "trackers", "checkpoint_every", "seed")


class PruneConfig(MethodConfig):
    """Hyperparameters of pruning; defaults of the paper."""

    sparsity: float = Field(0.95, ge=0, lt=1, description="share of the prunable weights that are set to zero")
    rule: Rule = Field("omp", description="which are kept, as in the selection magnitude: omp, imp or synflow")
    scope: Scope = Field("global", description="rank all prunable weights together, or each tensor by itself")
    prunable: Literal["matrices", "filters", "all"] = Field(
        "matrices", description="what is pruned: matrices and filters but the head's, filters alone (the authors), all"
    )
    recover_on: Literal["all", "retain", "none"] = Field(
        "all",
        description="what the pruned model is trained on before it forgets: all data, as the paper's sparse models "
        "are; the retain set; or nothing",
    )
    rewind: str | None = Field(
        None, description="checkpoint of an early epoch whose weights the kept ones go back to before that training"
    )
    then: str = Field("finetune", description="the method that forgets, see `expunge methods`")
    following: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of that method and of its training, as following.KEY=VALUE; its own defaults otherwise",
    )


class Prune(Method):
    """theta = m * theta_0, a short training of what is left, then another method, with all pruned weights held at 0.

    m keeps the share ``1 - sparsity`` of the prunable weights by one of the rules of the selection ``magnitude``. The
    paper prunes a model that knows everything and trains it again with the mask, from the weights of an early epoch
    (``rewind``) or, where there are none, from those it has. ``epochs``, ``learning_rate`` and other settings of
    training given directly are those of that training; those of the following method are ``following.epochs=...``.

    What follows trains with the mask, whatever it selects of the rest; a model that it starts anew (``then=retrain``)
    starts with zeros in the same places; one that changes weights without training has these zeros put back. The mask
    comes from weights that saw the forget set, so the outcome is approximate even then.

    Source: Jia et al. 2023, section 4, "prune first, then unlearn".
    """

    id = "prune"
    title = "prune the model, then let another method forget on what is left"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-3, "epochs": 5}
    Config: ClassVar[type[MethodConfig]] = PruneConfig

    def required(self) -> tuple[str, ...]:
        """What the following method needs, and the retain set for the training before it."""
        needs = dict.fromkeys(("retain",) if self.config.recover_on != "none" else ())
        try:
            return tuple(needs | dict.fromkeys(self._following()[0].required()))
        except BadInput:
            return tuple(needs)  # what is wrong with it is said by ``check``

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also a following method that cannot keep a model sparse, and whatever that refuses.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        with collected(problems):
            super().check(task, request)
        with collected(problems, "then"):
            method, settings = self._following()
            problems += self._misfits(method, settings)
            if not problems:
                method.check(task, request)
        if problems:
            raise BadInput(problems)

    def _misfits(self, method: Method, settings: TrainSettings) -> list[Problem]:
        if isinstance(method, Prune):
            return [Problem("then", "is prune itself", "name the method that is to forget")]
        if method.removal_level in ("guard", "adapter"):
            what = f"is {method.id}, which leaves the weights as they are"
            return [Problem("then", what, "name a method that changes weights")]
        problems = []
        if settings.lora is not None:
            what = "trains adapters, whose product fills the pruned places again"
            problems.append(Problem("following.lora", what, "leave it out"))
        if settings.select is not None and not isinstance(method, ObjectiveMethod):
            what = f"is not for {method.id}, which does not train with the loop"
            problems.append(Problem("following.select", what, "leave it out"))
        return problems

    def _following(self) -> tuple[Method, TrainSettings]:
        """The method that forgets, and its settings of training."""
        chosen = METHODS.get(self.config.then)
        return settle(chosen, self.config.following)

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Prune a copy, train it, and let the other method forget.

        Raises:
            BadInput: see ``check``; adapters or looks in the training before the method that forgets.
        """
        self.check(task, request)
        problems = []
        if run.train.lora is not None:
            problems.append(Problem("lora", "trains adapters, which fill the pruned places again", "leave it out"))
        if run.train.stop.every:
            what = "is for the method that forgets, and pruning comes before it"
            problems.append(Problem("stop", what, "give following.stop.every and the like"))
        if problems:
            raise BadInput(problems)
        selection = self._selection()
        selection.check(task, request)
        method, settings = self._following()
        shared = {name: getattr(run.train, name) for name in SHARED if name not in self.config.following}
        model, started = task.copy(), time.perf_counter()
        mask = selection.build(model, request, run.train.seed)
        if self.config.rewind is not None:
            early = model.load_like(self.config.rewind)
            model.model.load_state_dict(early.model.state_dict())
        zero_outside(model, mask)
        spent = model.cost.snapshot()
        spent.seconds = time.perf_counter() - started
        recovered = self._recover(model, request, run, mask)
        folder = run.folder / "then" if run.folder else None
        after = replace(run, train=settings.model_copy(update=shared), folder=folder, sparse=mask, notes={})
        outcome = method.apply(model, request, after)
        zero_outside(outcome.model, mask)
        outcome.model.source = f"{outcome.model.source} of {task.source}"
        found = {"sparsity": _sparsity(outcome.model, mask), "then": outcome.config, "then_training": outcome.train}
        return Unlearned(
            model=outcome.model,
            method=self.id,
            removal_level=self.removal_level,
            config={**self.config.model_dump(mode="json"), "found": found},
            train=run.train.model_dump(mode="json"),
            training=outcome.training,
            cost=spent + (recovered.cost if recovered else Cost()) + outcome.cost,
        )

    def _selection(self) -> Magnitude:
        config = self.config
        return Magnitude(
            MagnitudeConfig(
                rule=config.rule, share=1 - config.sparsity, scope=config.scope, prunable=config.prunable
            )
        )  # fmt: skip

    def _recover(self, model: Task, request: DeletionRequest, run: Run, mask: Mask) -> TrainResult | None:
        """Train what is left, unless a run in this folder already has."""
        config = self.config
        folder = run.folder / "recover" if run.folder else None
        if config.recover_on == "none":
            return None
        encoded = model.encode(request.retain)
        if config.recover_on == "all":
            encoded = encoded + model.encode(request.forget)
        identity, key = f"{self.id} {config.model_dump_json()}", ""
        if folder is not None:
            key = fingerprint(model, {"retain": encoded}, identity, run.train.model_dump_json())
        if folder is not None and (folder / DONE).is_file():
            put_back(model, None, folder / DONE, key)
            return None
        objective = Objective((Term("recover_nll", ("retain",), nll, "token_mean"),), anchor="retain")
        found = train(
            model, objective, {"retain": encoded}, run.train, folder=folder, mask=mask, progress=run.progress,
            identity=identity,
        )  # fmt: skip
        if found.diverged:
            raise BadInput(Problem("training after pruning", found.stop_reason, "lower learning_rate or sparsity"))
        if folder is not None:
            keep_weights(model, folder / DONE, key)
        return found


def _sparsity(model: Task, mask: Mask) -> float:
    """Share of the prunable weights that are zero."""
    ranked = [p for name, p in model.named_parameters() if mask.get(name) is not None]
    return sum(int((p == 0).sum()) for p in ranked) / max(1, sum(p.numel() for p in ranked))
