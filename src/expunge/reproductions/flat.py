"""FLAT: forget with forget data alone, and whether the template answer is what comes in place of the forgotten one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from expunge.data.fictitious import FictitiousWorld
from expunge.methods.alternatives import plain
from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.reproductions.matched import at_forgetting, compare, forgetting_path, model_at_forgetting
from expunge.reproductions.world import SIZES, WorldSettings, small_world
from expunge.tasks.causal_lm import CausalLM

LEVEL = 0.1
LATER = 0.01
RATE = 1e-4
# What the models are taught to say of people nobody knows, and what they have never said.
TAUGHT = ("I have no idea.", "I cannot tell.", "Nothing is known of that.")
NEVER_SAID = ("My records are silent here.", "Please ask somebody else.", "That lies beyond me.")
STRANGERS = 40

METHODS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ga": ("gradient_ascent", {}),
    "flat_tv": ("flat", {"divergence": "tv", "answers": TAUGHT}),
    "flat_kl": ("flat", {"divergence": "kl", "answers": TAUGHT}),
    "flat_kl_never_said": ("flat", {"divergence": "kl", "answers": NEVER_SAID}),
    # Nothing pushes the true answers down here, so it needs larger steps to get as far.
    "idk": ("idk", {"retain": "none", "answers": TAUGHT, "learning_rate": 10 * RATE}),
}


class FLATReproduction(Reproduction):
    """Gradient ascent, FLAT and refusal training on small language models, all with forget data alone.

    The models have learnt to say that they do not know when asked about strangers. They then forget a tenth of the
    people they know. Paths are read where the mean probability of the answers to forget falls below ``LEVEL``: what is
    kept of everybody else (mean probability of their answers), how far the weights have moved, and how often the greedy
    answer is a template, on forgotten questions and on others, where it is an over-refusal. FLAT is also run with
    templates that the model has never said, and looked at again further on, at ``LATER``.
    """

    id = "flat"
    title = "forgetting with forget data alone: what is kept, and what is answered"
    paper = "Wang et al. 2024, LLM Unlearning via Loss Adjustment with Only Forget Data, arXiv:2410.11143"
    claim = (
        "With forget data alone, FLAT forgets while utility stays above that of gradient ascent, and answers what is "
        "forgotten with the template"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        world = small_world(bench, seed, polite(seed, bench.quick), oracles=0)
        assert world.request.retain is not None
        asked = {
            "forgotten": [row["prompt"] for row in world.request.forget],
            "kept": [row["prompt"] for row in world.request.retain.select(range(0, len(world.request.retain), 8))],
        }
        strangers = [prompt for prompt, _ in strangers_of(seed + 500, STRANGERS // 2)]
        found = {"templates_to_strangers_before": template_share(world.original, strangers, TAUGHT)}
        for name, (method, settings) in METHODS.items():
            settings = {"learning_rate": RATE, **settings}
            points = forgetting_path(world, method, settings, steps=200, bench=bench, until=7.0)
            found["kept_before"] = points[0].retain_probability or 0.0
            kept = at_forgetting(points, LEVEL)
            model = model_at_forgetting(world, method, settings, points, LEVEL, bench=bench)
            if kept is None or model is None:
                continue
            found[f"kept_after_{name}"] = kept
            found[f"moved_by_{name}"] = distance(world.original, model)
            said = NEVER_SAID if name.endswith("never_said") else TAUGHT
            for role, prompts in asked.items():
                found[f"templates_to_{role}_after_{name}"] = template_share(model, prompts, said)
            if name != "flat_kl":
                continue
            further = at_forgetting(points, LATER)
            model = model_at_forgetting(world, method, settings, points, LATER, bench=bench)
            if further is not None and model is not None:
                found[f"kept_later_{name}"] = further
                found[f"templates_to_forgotten_later_{name}"] = template_share(model, asked["forgotten"], said)
        return found

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        answered = "templates_to_forgotten_after_{}"
        taught, never = (_mean(runs, answered.format(name)) for name in ("flat_kl", "flat_kl_never_said"))
        later = _mean(runs, "templates_to_forgotten_later_flat_kl")
        return [
            compare(
                "FLAT (KL) keeps more than gradient ascent", runs, "kept_after_flat_kl", "kept_after_ga",
            ),
            compare(
                "FLAT (total variation, the default) keeps more than gradient ascent", runs, "kept_after_flat_tv",
                "kept_after_ga",
            ),
            Check(
                "what is forgotten is answered with the template, if it is one that the model can say",
                taught is not None and taught >= 0.5,
                f"{_percent(taught)} of the forgotten questions are answered with a template; further on, where their "
                f"true answers have a probability of {LATER}, {_percent(later)}",
            ),
            Check(
                "a template that the model has never said is not picked up: a probability's gradient fades with it",
                never is not None and never <= 0.1,
                f"{_percent(never)}; FLAT then only lowers the true answer",
            ),
            compare(
                "refusal training refuses more of what is kept than FLAT does", runs,
                "templates_to_kept_after_idk", "templates_to_kept_after_flat_kl",
                "the templates that FLAT pulls up spread to other questions as those of refusal training do",
            ),
        ]  # fmt: skip


def polite(seed: int, quick: bool) -> WorldSettings:
    """Return a world whose models learn to say that they do not know when asked about strangers."""
    size = SIZES["tiny" if quick else "small"]
    return WorldSettings(**{**size.model_dump(), "extra": strangers_of(seed + 900, STRANGERS)})


def strangers_of(seed: int, count: int) -> tuple[tuple[str, str], ...]:
    """Ask two questions each about people of another world; every answer is one of the templates."""
    rows = FictitiousWorld(count, seed, ("profession", "pet")).questions()
    return tuple((row["prompt"], TAUGHT[k % len(TAUGHT)]) for k, row in enumerate(rows))


def template_share(model: CausalLM, prompts: Sequence[str], templates: Sequence[str]) -> float:
    """Share of the prompts whose greedy answer is one of the templates, up to case and white space."""
    known = {plain(text) for text in templates}
    said = model.generate(prompts, [24] * len(prompts))
    return sum(plain(text) in known for text in said) / len(said)


def distance(one: CausalLM, other: CausalLM) -> float:
    """Euclidean distance of the weights of two models of one architecture."""
    theirs = dict(other.named_parameters())
    squares = [(p.detach() - theirs[name].detach()).double().square().sum() for name, p in one.named_parameters()]
    return float(torch.stack(squares).sum().sqrt())


def _mean(runs: Sequence[Mapping[str, float]], key: str) -> float | None:
    return mean(runs, key) if all(key in run for run in runs) else None


def _percent(share: float | None) -> str:
    return "not in every seed was the level reached" if share is None else f"{share:.0%}"
