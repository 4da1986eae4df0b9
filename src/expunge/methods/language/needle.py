"""Needle: overwrite the value vectors that carry the concept, and nothing else."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from pydantic import Field

from expunge.data.concept_vectors import read_concepts
from expunge.errors import BadInput, Problem
from expunge.methods.base import Method, MethodConfig, Run, Unlearned, settle
from expunge.requests.request import DeletionRequest
from expunge.selections.concept_vectors import TraceSettings, trace_mask, trace_of
from expunge.selections.localisation import damage
from expunge.tasks.base import Task
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.feed_forward import Place, value_matrices, vectors_at
from expunge.training.loop import train
from expunge.training.objective import Objective, Stream, Term, nll
from expunge.training.settings import StopSettings, TrainSettings


class NeedleConfig(MethodConfig, TraceSettings):
    """Hyperparameters of Needle.

    Sizes are relative to the vectors, so they mean the same at every width. The authors' are absolute (noise 0.1 and
    learning rate 0.2 per coordinate at width 4096, one pass over an article).
    """

    strength: float = Field(2.0, ge=0, description="length of the noise over length of the vector; 0 adds none")
    ascent_steps: int = Field(4, ge=0, description="steps of gradient ascent on the forget set after the noise")
    ascent_rate: float = Field(
        0.3, gt=0, description="Adam's first step per coordinate, in units of the vectors' root mean square"
    )
    retain_weight: float = Field(
        0.0, ge=0, description="weight of the retain NLL during the ascent; the paper has none"
    )
    after: str = Field("", description="method that goes first; the vectors are located in the model before it")
    after_settings: dict[str, Any] = Field(
        {}, description="settings of that method and of its training, as for the method alone"
    )


class Needle(Method):
    """v <- v + c ||v|| / sqrt(d) eps for each located vector v, then ascent on NLL(forget) that moves nothing else.

    Everything outside the located vectors keeps its bits: the ascent has no weight decay, and a mask on the gradient
    alone would not be enough (in the authors' code decoupled decay shrinks the rest of the matrix and the embedding).

    Source: Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv 2406.11614,
    where it is the upper bound that knows where the knowledge is.
    """

    id = "needle"
    title = "overwrite the value vectors that carry the concept, leave every other weight alone"
    tasks: ClassVar[tuple[str, ...]] = ("causal_lm",)
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv:2406.11614"
    Config: ClassVar[type[MethodConfig]] = NeedleConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        super().check(task, request)
        config = self.config
        if not (config.strength or config.ascent_steps):
            raise BadInput(Problem("strength and ascent_steps", "are both 0, so nothing would change", "raise one"))
        if config.file is not None:
            read_concepts(config.file)
        if config.after:
            first, _ = self._first()
            first.check(task, request)

    def _first(self) -> tuple[Method, TrainSettings]:
        from expunge.methods.run import METHODS  # the registry imports every method, this one too

        method = METHODS.get(self.config.after)
        if method.id == self.id or method.removal_level not in ("approximate", "exact"):
            what = f"'{method.id}' leaves no changed weights to go on from"
            raise BadInput(Problem("after", what, "name another method, one that changes the weights"))
        return settle(method, self.config.after_settings)

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Locate in the model given; run the method that goes first, if any; overwrite.

        Raises:
            BadInput: see ``check``; or no value vector carries a concept of the request.
        """
        self.check(task, request)
        given = cast(CausalLM, task)
        before = given.cost.snapshot()
        trace = trace_of(given, request, self._trace_settings(), run.train.seed)
        spent = given.cost - before
        places = sorted({place for found in trace.values() for place in found})
        if self.config.after:
            first, settings = self._first()
            folder = run.folder / "after" if run.folder else None
            done = first.apply(task, request, Run(settings, folder, run.progress, run.oracle))
            model, spent = cast(CausalLM, done.model), spent + done.cost
        else:
            model = given.copy()
        model.model.eval()
        own = model.cost.snapshot()
        with model.cost.measured():
            matrices = value_matrices(model.model, self.config.modules)
            if self.config.strength:
                damage(matrices, places, self.config.strength, run.train.seed)
            if self.config.ascent_steps:
                self._ascend(model, request, places, run)
        model.source = f"{self.id} of {task.source}"
        found = {concept: [str(place) for place in where] for concept, where in trace.items()}
        return Unlearned(
            model=model,
            method=self.id,
            removal_level=self.removal_level,
            config={**self.config.model_dump(mode="json"), "found": found},
            cost=spent + (model.cost - own),
        )

    def _trace_settings(self) -> TraceSettings:
        return TraceSettings(**self.config.model_dump(include=set(TraceSettings.model_fields)))

    def _ascend(self, model: CausalLM, request: DeletionRequest, places: list[Place], run: Run) -> None:
        matrices = value_matrices(model.model, self.config.modules)
        size = float(vectors_at(matrices, places).square().mean().sqrt())
        terms = [Term("forget_nll", ("forget",), nll, "token_mean", -1.0)]
        streams: dict[Stream, Any] = {"forget": model.encode(request.forget)}
        if self.config.retain_weight and request.retain is not None:
            terms.append(Term("retain_nll", ("retain",), nll, "token_mean", self.config.retain_weight))
            streams["retain"] = model.encode(request.retain)
        settings = TrainSettings(
            epochs=self.config.ascent_steps,
            max_steps=self.config.ascent_steps,
            batch_size=run.train.batch_size,
            micro_batch_size=run.train.micro_batch_size,
            learning_rate=self.config.ascent_rate * size,
            weight_decay=0.0,
            warmup=0.0,
            clip_norm=None,
            seed=run.train.seed,
            stop=StopSettings(),
        )
        mask = trace_mask(model, matrices, places)
        outcome = train(model, Objective(tuple(terms)), streams, settings, mask=mask, progress=run.progress)
        if outcome.diverged:
            raise BadInput(Problem("ascent_rate", outcome.stop_reason, "lower ascent_rate or ascent_steps"))
