"""The survey's three classes side by side at equal forgetting: an objective, merging, and unlearning in context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from expunge.audits.general.relearning import Relearning
from expunge.audits.general.weight_distance import squared_distances
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import BadInput, ExpungeError
from expunge.methods.general.task_vector import negate_task_vector
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.reproductions.matched import TRAINING, at_forgetting, forgetting_path, model_at_forgetting
from expunge.reproductions.world import World, small_world
from expunge.tasks.causal_lm import CausalLM
from expunge.training.probe import ProbePoint, measure

# As far as unlearning in context gets before its questions have no room left.
LEVEL = 0.4
# A method is selective if, where it has forgotten to the level, it keeps at least so much more of everything else.
SELECTIVE = 0.1
CLASSES = ("objective", "merging", "in_context")

NPO: Mapping[str, Any] = {"beta": 0.1, "learning_rate": 1e-4}
TASK_VECTOR: Mapping[str, Any] = {"learning_rate": 1e-4, "epochs": 10}
STRENGTHS = tuple(float(s) for s in range(1, 25))
# Examples to forget before a question, beside two to keep, until the level or until no more of them fit.
SHOTS = range(1, 13)
RETAIN_SHOTS = 2
RELEARNING: Mapping[str, Any] = {"steps": (0, 2, 8, 32), "learning_rates": (1e-3,)}


class SurveyReproduction(Reproduction):
    """One method of each class on the same small language models, each read at the same level of forgetting.

    Objective: NPO with a retain term, step by step. Merging: a task vector of ten epochs on the forget set, subtracted
    more and more. In context: more and more examples to forget with the answers to others, and two to keep, before
    every question. Each is read where the mean probability of the answers to forget falls below ``LEVEL``. There it is
    asked what is kept (mean probability of the answers about everybody else), what it cost (floating-point operations,
    as a share of those of the objective), which weights changed, and what fine-tuning on half of the forget set brings
    back of the other half, beyond what it teaches a model that never knew it.
    """

    id = "survey"
    title = "objective, merging and in-context unlearning side by side at equal forgetting"
    paper = "Si et al. 2023, Knowledge Unlearning for LLMs: Tasks, Methods, and Challenges, arXiv:2311.15766"
    claim = (
        "All three classes lower what is known and keep the rest; they differ in cost, in whether weights change, and "
        "none of them takes the knowledge out for good"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        world = small_world(bench, seed, "deep", oracles=1)
        before = look(world, world.original, 0)
        found = {"known_before": before.forget_probability or 0.0, "kept_before": before.retain_probability or 0.0}
        tokens = tokens_asked(world.original, world)
        for name, (points, model, flops) in self._paths(world, bench):
            found[f"{name}_least_known"] = min(p.forget_probability or 0.0 for p in points)
            if (kept := at_forgetting(points, LEVEL)) is None or model is None:
                continue
            bench.progress.stage(f"relearning after {name}")
            found |= {f"{name}_kept": kept, f"{name}_flops": flops, **attacked(name, model, world)}
            found[f"{name}_tokens_asked"] = tokens_asked(model, world) / tokens
            found[f"{name}_known_bare"] = look(world, model.base, 0).forget_probability or 0.0
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        missing = [f"{name} in {n} seeds" for name in CLASSES if (n := sum(f"{name}_kept" not in r for r in runs))]
        least = {name: column(runs, f"{name}_least_known") for name in CLASSES}
        lowest = ", ".join(f"{name} {_range(values)}" for name, values in least.items())
        reached = Check(
            "each class lowers what is known to the level",
            not missing and max(value for values in least.values() for value in values) < LEVEL,
            f"lowest mean probability on the path: {lowest}"
            + (f"; not reached: {', '.join(missing)}" if missing else ""),
        )
        runs = [run for run in runs if all(f"{name}_kept" in run for name in CLASSES)]
        if not runs:
            return [reached]

        def each(name: str, key: str) -> list[float]:
            return [run[f"{name}_{key}"] for run in runs]

        def selective(name: str, otherwise: str = "") -> Check:
            values = each(name, "kept")
            holds = min(values) >= LEVEL + SELECTIVE
            detail = f"{_range(values)} of {mean(runs, 'kept_before'):.2f} kept where {LEVEL:g} of "
            detail += f"{mean(runs, 'known_before'):.2f} is left of what is to be forgotten"
            return Check(f"{name} forgets selectively", holds, detail if holds or not otherwise else detail + otherwise)

        bare = [run["known_before"] - run["in_context_known_bare"] for run in runs]
        cost = [run["in_context_flops"] / run["objective_flops"] for run in runs]
        changed = {name: each(name, "weights_changed") for name in CLASSES}
        back = {name: [r[f"{name}_relearned"] - r["oracle_relearned"] for r in runs] for name in CLASSES}
        rises = [f"{name} {_range(values, '+')}" for name, values in back.items()]
        return [
            reached,
            selective("objective"),
            selective("merging"),
            selective(
                "in_context",
                "; a model this small, trained on single questions, has not learnt to learn in context, and whatever "
                "stands before a question disturbs it",
            ),
            Check(
                "objective and merging change the weights, in-context unlearning does not",
                min(*changed["objective"], *changed["merging"]) > 0 and max(changed["in_context"]) == 0,
                ", ".join(f"{name}: {_range(values)} of the tensors" for name, values in changed.items()),
            ),
            Check(
                "in-context unlearning costs nothing to make and more to ask",
                max(cost) < 0.01 and min(each("in_context", "tokens_asked")) > 1,
                f"{_range(cost)} of the objective's operations; every question is "
                f"{_range(each('in_context', 'tokens_asked'))} times as long",
            ),
            Check(
                "without its context, the model knows what it knew",
                max(map(abs, bare)) < 0.01,
                f"mean probability {mean(runs, 'in_context_known_bare'):.3f}, {mean(runs, 'known_before'):.3f} before",
            ),
            Check(
                "none takes the knowledge out: fine-tuning on one half brings back more of the other than it teaches",
                min(value for values in back.values() for value in values) > 0,
                f"rise of the mean probability beyond the retrained model's: {', '.join(rises)}; for in-context "
                "unlearning with its context, which nothing obliges anybody to use",
            ),
        ]

    def _paths(
        self, world: World, bench: Workbench
    ) -> Iterator[tuple[str, tuple[list[ProbePoint], CausalLM | None, float]]]:
        """Per class: its path, the model at the level, and the operations that went into it."""
        points = forgetting_path(world, "npo", NPO, steps=80, bench=bench, until=2.5)
        model = model_at_forgetting(world, "npo", NPO, points, LEVEL, bench=bench)
        yield "objective", (points, model, model.cost.flops if model is not None else 0.0)
        bench.progress.stage("subtracting a task vector")
        yield "merging", subtracted(world)
        bench.progress.stage("unlearning in context")
        yield "in_context", in_context(world)


def look(world: World, model: CausalLM, step: int) -> ProbePoint:
    """Return the mean probabilities of a model's answers about those to forget and those to keep."""
    sets = {role: model.encode(examples) for role, examples in world.request.sets().items() if role != "holdout"}
    seen = measure(model, sets)
    return ProbePoint(
        step,
        forget_nll=seen["forget"][0],
        retain_nll=seen["retain"][0],
        forget_probability=seen["forget"][1],
        retain_probability=seen["retain"][1],
    )


def subtracted(world: World) -> tuple[list[ProbePoint], CausalLM | None, float]:
    """Subtract a task vector more and more until the level; return the path, the model there and its operations."""
    settings = {**TRAINING, **TASK_VECTOR, "seed": world.seed, "strength": 1.0}
    outcome = unlearn(world.original, world.request, "task_vector", settings=settings)
    model = outcome.model
    assert isinstance(model, CausalLM)
    base = world.original.model.state_dict()
    # At strength 1 the model is the original mirrored at the fine-tuned one.
    tuned = {name: 2 * base[name] - value for name, value in model.model.state_dict().items()}
    points = [look(world, world.original, 0)]
    for number, strength in enumerate(STRENGTHS, 1):
        model.model.load_state_dict(negate_task_vector(base, tuned, strength))
        points.append(look(world, model, number))
        if (points[-1].forget_probability or 0.0) < LEVEL:
            return points, model, outcome.cost.flops
    return points, None, outcome.cost.flops


def in_context(world: World) -> tuple[list[ProbePoint], CausalLM | None, float]:
    """Show more and more examples before a question until the level; return the path, the model and its operations."""
    points = [look(world, world.original, 0)]
    for shots in SHOTS:
        settings = {"forget_shots": shots, "retain_shots": RETAIN_SHOTS, "seed": world.seed}
        try:
            outcome = unlearn(world.original, world.request, "in_context", settings=settings)
        except BadInput:  # the questions have no room left
            break
        assert isinstance(outcome.model, CausalLM)
        points.append(look(world, outcome.model, shots))
        if (points[-1].forget_probability or 0.0) < LEVEL:
            return points, outcome.model, outcome.cost.flops
    return points, None, 0.0


def attacked(name: str, model: CausalLM, world: World) -> dict[str, float]:
    """Return which share of the weight tensors changed, and what relearning brings back.

    Raises:
        ExpungeError: the attack failed, which says nothing of the model.
    """
    distances = squared_distances(model, world.original)
    models = {"unlearned": model, "original": world.original, "oracle": world.oracle}
    finding = run_one(Relearning(Relearning.Config(**RELEARNING)), Observations(models, world.request, seed=world.seed))
    if finding.status != "measured":
        raise ExpungeError(f"relearning after {name}: {finding.status}, {finding.note}")
    gained = {of: estimates["heldout_gain"].value for of, estimates in finding.estimates.items()}
    back, anew = gained["unlearned"], gained["oracle"]
    assert back is not None
    assert anew is not None
    return {
        f"{name}_weights_changed": sum(d > 0 for d, _ in distances.values()) / len(distances),
        f"{name}_relearned": back,
        "oracle_relearned": anew,
    }


def tokens_asked(model: CausalLM, world: World) -> float:
    """Return the mean number of tokens that the model reads of a question to forget, its context included."""
    prompts = model.encoder.encode_prompts(list(world.request.forget["prompt"]))
    return float(torch.tensor([len(ids) for ids in prompts], dtype=torch.float64).mean())


def _range(values: Sequence[float], sign: str = "") -> str:
    low, high = min(values), max(values)
    return f"{low:{sign}.2f} to {high:{sign}.2f}" if len(values) > 1 else f"{low:{sign}.2f}"
