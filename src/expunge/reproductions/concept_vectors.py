"""ConceptVectors: objectives change what a model says and hardly the vectors that say it; Needle changes these."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from expunge.audits.base import Finding
from expunge.audits.suite import run_audits
from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.matched import compare, forgetting_path, model_at_forgetting
from expunge.reproductions.world import World, small_world
from expunge.tasks.causal_lm import CausalLM

LEVEL = 0.3
OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "grad_diff": {"learning_rate": 1e-4, "retain_weight": 5.0},
    "npo": {"learning_rate": 1e-4, "beta": 0.1, "retain_weight": 5.0},
}
NEEDLE: Mapping[str, Any] = {"strength": 2.0, "ascent_rate": 0.3, "batch_size": 32}
NEEDLE_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
TRACE: Mapping[str, Any] = {"strengths": (4.0,), "unrelated": 20}
RELEARNING: Mapping[str, Any] = {"steps": (0, 2, 4, 8, 16), "learning_rates": (1e-4,)}


class ConceptVectorsReproduction(Reproduction):
    """GradDiff and NPO beside Needle at equal forgetting, on small language models of the fictitious world.

    Every person to be forgotten is a concept. Each method goes on until the mean probability of the answers falls below
    ``LEVEL``; then the concept-vector audit compares the vectors that carried the concepts with the original's, and the
    relearning audit fine-tunes on half of the people and asks about the other half. Needle is the paper's, without a
    retain term: noise, then gradient ascent on the located vectors alone.
    """

    id = "concept_vectors"
    title = "change of the parametric trace at equal forgetting, and what relearning brings back"
    paper = "Hong et al. 2024, Intrinsic Evaluation of Unlearning Using Parametric Knowledge Traces, arXiv:2406.11614"
    claim = (
        "Objectives barely move the parametric trace while behaviour changes; directly ablating the trace moves it and "
        "resists relearning"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        world = small_world(bench, seed, "small", oracles=1)
        models = {name: self._objective(world, name, bench) for name in OBJECTIVES}
        models["needle"] = self._needle(world, bench)
        found = {"forget_original": _probability(world.original, world.request.forget)}
        for name, model in models.items():
            if model is None:
                continue
            bench.progress.stage(f"opening what {name} left")
            found |= self._look(world, name, model, bench)
        bench.progress.stage("relearning with the oracle")
        found |= {"gain_oracle": self._gain(world, world.oracle)}
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        located = [run.get("located", 0.0) for run in runs]
        checks = [
            Check(
                "most concepts have a localised trace, so there is something to look at",
                min(located) >= 0.5,
                f"{statistics.fmean(located):.0%} of the concepts on average, {min(located):.0%} in the worst seed",
            )
        ]
        for name in OBJECTIVES:
            there = [run for run in runs if f"jaccard_{name}" in run]
            claim = f"{name} keeps most of what the trace says (Jaccard of top tokens above 0.7)"
            if len(there) < len(runs):
                checks.append(Check(claim, False, f"{len(runs) - len(there)} seeds did not reach the level"))
                continue
            kept, elsewhere = mean(runs, f"jaccard_{name}"), mean(runs, f"random_jaccard_{name}")
            behaviour = mean(runs, f"rouge_target_{name}")
            detail = f"{kept:.2f} at the trace, {elsewhere:.2f} at random vectors of the same layers; "
            detail += f"its answers share {behaviour:.2f} (ROUGE-L) with the original's"
            checks.append(Check(claim, min(run[f"jaccard_{name}"] for run in runs) > 0.7, detail))
        checks += [
            compare(f"Needle changes the trace more than {name}", runs, f"jaccard_{name}", "jaccard_needle")
            for name in OBJECTIVES
        ]
        checks += [
            compare(f"{name} gives more back under relearning than Needle", runs, f"gain_{name}", "gain_needle")
            for name in OBJECTIVES
        ]
        return checks

    def _objective(self, world: World, name: str, bench: Workbench) -> CausalLM | None:
        settings = OBJECTIVES[name]
        path = forgetting_path(world, name, settings, steps=240, bench=bench, until=3.0)
        return model_at_forgetting(world, name, settings, path, LEVEL, bench=bench)

    def _needle(self, world: World, bench: Workbench) -> CausalLM | None:
        """Return the model after the first number of ascent steps that reaches the level."""
        bench.progress.stage("forgetting with needle")
        for steps in NEEDLE_STEPS:
            settings = {**NEEDLE, "ascent_steps": steps, "seed": world.seed}
            try:
                model = unlearn(world.original, world.request, "needle", settings=settings).model
            except BadInput:
                return None  # no concept has a vector, which the numbers say by being absent
            assert isinstance(model, CausalLM)
            if _probability(model, world.request.forget) < LEVEL:
                return model
        return None

    def _look(self, world: World, name: str, model: CausalLM, bench: Workbench) -> dict[str, float]:
        request = world.request
        assert request.retain is not None
        audit = run_audits(
            {"unlearned": model, "original": world.original}, request, ["concept_vectors"],
            settings={"concept_vectors": {**TRACE}}, limits={"retain": 60}, seed=world.seed,
        ).finding("concept_vectors")  # fmt: skip
        out = {
            f"forget_{name}": _probability(model, request.forget),
            f"kept_{name}": _probability(model, request.retain),
            f"gain_{name}": self._gain(world, model),
        }
        for number in ("jaccard", "random_jaccard", "cosine", "l2", "anew_score", "damage_target", "rouge_target"):
            if (value := _value(audit, "unlearned", number)) is not None:
                out[f"{number}_{name}"] = value
        for number in ("located", "anew_score", "damage_target"):
            if (value := _value(audit, "original", number)) is not None:
                out[number if number == "located" else f"{number}_original"] = value
        return out

    def _gain(self, world: World, model: CausalLM) -> float:
        audit = run_audits(
            {"unlearned": model}, world.request, ["relearning"], settings={"relearning": {**RELEARNING}},
            limits={"retain": 30}, seed=world.seed,
        ).finding("relearning")  # fmt: skip
        value = _value(audit, "unlearned", "heldout_gain")
        assert value is not None, audit.note
        return value


def _value(finding: Finding, model: str, scalar: str) -> float | None:
    return finding.estimates[model][scalar].value


def _probability(model: CausalLM, examples: Dataset) -> float:
    pairs = [(row["prompt"], row["answer"]) for row in examples.to_list()]
    return statistics.fmean(math.exp(-scores.nll) for scores in model.score(pairs))
