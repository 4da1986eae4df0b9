"""Relearning: does a little fine-tuning on one half of the forget set bring back the other half?

A model that forgot must learn the facts anew, like the oracle; one that only hid them gives them back at the first
touch. Copies of every model are fine-tuned on half T with the same seeded batches and measured on T and on the half V
that they were not shown.

Per-example statistics for the verdict: ``relearned_heldout_nll`` (V) and ``relearned_trained_nll`` (T) after the full
budget, against the oracle after the same. Holdout examples after the same budget are the control for V; T has no
control but the oracle, so without one it is no evidence.

Source: Deeb & Roger 2024, Do Unlearning Methods Remove Information from Language Model Weights? (RTT).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from expunge.audits.base import Audit, AuditConfig, Estimate, Evidence, Finding, Plot, Scalar
from expunge.audits.examples import Pair
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.errors import Diverged
from expunge.tasks.tokens import TokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Split = Literal["auto", "groups", "examples"]
_HELD, _SHOWN = "relearned_heldout_nll", "relearned_trained_nll"


def split_halves(ids: Sequence[str], groups: Mapping[str, str], split: Split, seed: int) -> tuple[list[str], list[str]]:
    """Split examples into the half to train on (T) and the half to test on (V).

    Args:
        ids: examples.
        groups: example id -> group, or empty.
        split: "groups" puts a whole group on one side; "examples" splits within each group; "auto" splits groups
            where there are at least 4, because facts on one person can give each other away.
        seed: of the draw; the order of ``ids`` does not matter.

    Returns:
        The ids of T and of V, disjoint; T has the odd one out.
    """
    rng = np.random.default_rng(seed)
    by_group: dict[str, list[str]] = {}
    for identity in sorted(ids):
        by_group.setdefault(groups.get(identity, ""), []).append(identity)
    whole = split == "groups" or (split == "auto" and len(by_group) >= 4)
    names = sorted(by_group)
    if whole:
        order = [names[k] for k in rng.permutation(len(names))]
        shown = set(order[: (len(order) + 1) // 2])
        return (
            [i for name in names if name in shown for i in by_group[name]],
            [i for name in names if name not in shown for i in by_group[name]],
        )
    trained: list[str] = []
    tested: list[str] = []
    for name in names:
        members = [by_group[name][k] for k in rng.permutation(len(by_group[name]))]
        # Of groups with an odd number, every other one gives its extra example to the other side.
        cut = (len(members) + (len(trained) <= len(tested))) // 2
        trained += members[:cut]
        tested += members[cut:]
    return sorted(trained), sorted(tested)


def batches(ids: Sequence[str], size: int, seed: int) -> Iterator[list[str]]:
    """Yield batches for ever: seeded permutations of the examples, one after another."""
    rng = np.random.default_rng(seed)
    waiting: list[str] = []
    while True:
        while len(waiting) < size:
            waiting += [ids[k] for k in rng.permutation(len(ids))]
        yield waiting[:size]
        waiting = waiting[size:]


def area_under(curve: Sequence[tuple[int, float]]) -> float:
    """Return the area under a curve over ``log2(1 + step)``, scaled so that a constant curve gives its constant."""
    x = [math.log2(1 + step) for step, _ in curve]
    if len(curve) < 2:
        return curve[0][1] if curve else float("nan")
    total = sum((b - a) * (curve[k][1] + curve[k + 1][1]) / 2 for k, (a, b) in enumerate(itertools.pairwise(x)))
    return total / (x[-1] - x[0])


def first_step_at(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """Return the first measured step at which a curve is at a level or above, or None."""
    return next((step for step, value in curve if value >= level), None)


class Relearning(Audit):
    """Recovery curves of each model under the same short fine-tuning."""

    id = "relearning"
    title = "Does a little fine-tuning bring the knowledge back?"
    paper = (
        "Deeb & Roger 2024, Do Unlearning Methods Remove Information from Language Model Weights? (arXiv:2410.08827)"
    )

    class Config(AuditConfig):
        """Settings of the relearning audit."""

        steps: tuple[int, ...] = Field((0, 1, 2, 4, 8, 16, 32), description="optimiser steps at which to measure")
        batch_size: int = Field(8, ge=1, description="examples per step")
        learning_rates: tuple[float, ...] = Field(
            (1e-5, 1e-4, 1e-3),
            description="AdamW rates to choose from: the one with which the oracle (without one, the unlearned model) "
            "learns the shown half best in selection_steps; it is then used for every model",
        )
        selection_steps: int = Field(8, ge=1, description="steps of each trial when there are several learning rates")
        split: Split = Field("auto", description="what a half is made of: groups (people), examples, or auto")
        level: float = Field(
            0.9, gt=0, le=1, description="share of the original's probability that counts as recovered"
        )
        max_examples: int = Field(200, ge=2, description="forget examples used at most, drawn by seed")
        clip: float = Field(1.0, gt=0, description="gradient norm at which to clip")

        @field_validator("steps")
        @classmethod
        def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
            if len(steps) < 2 or list(steps) != sorted(set(steps)) or steps[0] != 0:
                raise ValueError("give at least two ascending steps, the first of them 0")
            return steps

        @field_validator("learning_rates")
        @classmethod
        def _positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
            if not rates or min(rates) <= 0:
                raise ValueError("give at least one positive learning rate")
            return rates

    def run(self, seen: Observations) -> Finding:
        pairs = {i: found[0] for i, found in seen.examples.pairs("forget", "answer").items()}
        rng = np.random.default_rng(seen.seed)
        used = [sorted(pairs)[k] for k in sorted(rng.permutation(len(pairs))[: self.config.max_examples])]
        trained, tested = split_halves(used, seen.groups("forget"), self.config.split, seen.seed)
        if len(trained) < 2 or len(tested) < 2:
            return Finding(
                self.id, "no data", note=f"{len(used)} forget examples cannot be split into two halves of two"
            )
        control = {i: found[0] for i, found in seen.examples.pairs("holdout", "answer").items()}
        control = {i: control[i] for i in sorted(control)[: len(tested)]}
        rate = self._choose_rate(seen, {i: pairs[i] for i in trained})
        values = Values(seen)
        curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
        done: dict[int, str] = {}
        for model, task in seen.models.items():
            if (twin := done.setdefault(id(task), model)) == model:
                curves[model] = self._attack(seen, model, pairs, trained, tested, control, rate, values)
            else:
                curves[model] = curves[twin]
                for role, name in (("forget", _HELD), ("forget", _SHOWN), ("holdout", _HELD)):
                    if found := values.get(twin, role, name):
                        values.add(model, role, name, found)
        original = curves.get("original", {}).get("tested")
        goal = None if original is None else self.config.level * original[0][1]
        return Finding(
            self.id,
            scalars=self._scalars(),
            estimates={model: self._estimates(seen, values, model, curves[model], goal) for model in seen.models},
            per_example=values.per_example(),
            evidence=self._evidence(seen, values),
            plots=[
                _plot("of the half that was not shown", {m: c["tested"] for m, c in curves.items()}),
                _plot("of the half that was shown", {m: c["trained"] for m, c in curves.items()}),
            ],
            attempted={
                "steps": list(self.config.steps),
                "batch size": self._batch(len(trained)),
                "learning rate": rate,
                "shown": len(trained),
                "tested": len(tested),
                "weights": "all, in float32",
            },
        )

    # ---- the attack ------------------------------------------------------------------------------------------------

    def _attack(
        self,
        seen: Observations,
        model: str,
        pairs: Mapping[str, Pair],
        trained: Sequence[str],
        tested: Sequence[str],
        control: Mapping[str, Pair],
        rate: float,
        values: Values,
    ) -> dict[str, list[tuple[int, float]]]:
        curve: dict[str, list[tuple[int, float]]] = {"trained": [], "tested": []}
        victim = _victim(seen.models[model])
        shown = {i: pairs[i] for i in trained}
        for step in self._train(victim, shown, self.config.steps, rate, seen.seed):
            last = step == self.config.steps[-1]
            asked = {**shown, **{i: pairs[i] for i in tested}, **(control if last else {})}
            scores = dict(zip(asked, victim.score(list(asked.values())), strict=True))
            curve["trained"].append((step, _probability(scores, trained)))
            curve["tested"].append((step, _probability(scores, tested)))
            if last:
                values.add(model, "forget", _SHOWN, {i: scores[i].nll for i in trained})
                values.add(model, "forget", _HELD, {i: scores[i].nll for i in tested})
                if control:
                    values.add(model, "holdout", _HELD, {i: scores[i].nll for i in control})
        seen.spend(model, victim.cost)
        return curve

    def _train(
        self, victim: CausalLM, shown: Mapping[str, Pair], steps: Sequence[int], rate: float, seed: int
    ) -> Iterator[int]:
        """Fine-tune in place and stop at each of the steps. Evaluation mode: dropout would need a seed of its own."""
        parameters = [p for p in victim.model.parameters() if p.is_floating_point()]
        optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        order = batches(sorted(shown), self._batch(len(shown)), seed)
        for step in range(steps[-1] + 1):
            if step in steps:
                yield step
            if step == steps[-1]:
                return
            with torch.enable_grad():
                loss = victim.answer_nll([shown[i] for i in next(order)])
                if not torch.isfinite(loss):
                    raise Diverged(f"the loss is {float(loss.detach())} after {step} steps at learning rate {rate:g}")
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            optimiser.step()

    def _batch(self, shown: int) -> int:
        return min(int(self.config.batch_size), shown)

    def _choose_rate(self, seen: Observations, shown: Mapping[str, Pair]) -> float:
        rates = self.config.learning_rates
        if len(rates) == 1:
            return float(rates[0])
        judge = next(iter(seen.oracles), "unlearned")
        reached: dict[float, float] = {}
        for rate in rates:
            victim = _victim(seen.models[judge])
            try:
                for _ in self._train(victim, shown, (0, self.config.selection_steps), rate, seen.seed):
                    pass
                reached[rate] = float(np.mean([s.nll for s in victim.score(list(shown.values()))]))
            except Diverged:
                reached[rate] = math.inf
            seen.spend(judge, victim.cost)
        best = min(reached, key=lambda rate: reached[rate] if math.isfinite(reached[rate]) else math.inf)
        if not math.isfinite(reached[best]):
            raise Diverged(f"'{judge}' diverges at every learning rate: {', '.join(f'{r:g}' for r in rates)}")
        return float(best)

    # ---- what is reported ------------------------------------------------------------------------------------------

    def _evidence(self, seen: Observations, values: Values) -> list[Evidence]:
        held = list(values.evidence(_HELD, "forget", "low"))
        # Nothing but an oracle that was shown the same half is a control for that half.
        return [*held, *values.evidence(_SHOWN, "forget", "low")] if seen.oracles else held

    def _scalars(self) -> list[Scalar]:
        last = self.config.steps[-1]
        return [
            Scalar("heldout_before", "Probability of the half not shown, before", "probability", "high"),
            Scalar("heldout_after", f"Probability of the half not shown, after {last} steps", "probability", "high"),
            Scalar("heldout_gain", "Gain on the half not shown", "probability", "high"),
            Scalar("heldout_nll_after", f"NLL of the half not shown, after {last} steps", "nats/token", "low"),
            Scalar("shown_after", f"Probability of the half shown, after {last} steps", "probability", "high"),
            Scalar("area", "Area under the recovery curve of the half not shown", "probability", "high"),
            Scalar("steps_to_recover", f"Steps to {self.config.level:.0%} of the original's level", "steps", "low", 0),
            Scalar("examples_to_recover", "Examples shown until then", "examples", "low", 0),
        ]

    def _estimates(
        self,
        seen: Observations,
        values: Values,
        model: str,
        curve: Mapping[str, Sequence[tuple[int, float]]],
        goal: float | None,
    ) -> dict[str, Estimate]:
        held, n = curve["tested"], len(values.get(model, "forget", _HELD))
        nll, shown_nll = values.get(model, "forget", _HELD), values.get(model, "forget", _SHOWN)
        if goal is None:
            steps = examples = Estimate(None, note="the original was not given, so there is no level to reach")
        elif (step := first_step_at(held, goal)) is None:
            steps = examples = Estimate(None, n=n, note=f"not reached within {held[-1][0]} steps")
        else:
            steps, examples = Estimate(float(step), n=n), Estimate(float(step * self._batch(len(shown_nll))), n=n)
        return {
            "heldout_before": Estimate(held[0][1], n=n),
            "heldout_after": seen.mean("forget", {i: math.exp(-v) for i, v in nll.items()}),
            "heldout_gain": Estimate(held[-1][1] - held[0][1], n=n),
            "heldout_nll_after": seen.mean("forget", nll),
            "shown_after": seen.mean("forget", {i: math.exp(-v) for i, v in shown_nll.items()}),
            "area": Estimate(area_under(held), n=n),
            "steps_to_recover": steps,
            "examples_to_recover": examples,
        }


def _victim(task: CausalLM) -> CausalLM:
    """Return a copy to be attacked: adapters folded in, every weight trainable, float32 so that small steps count."""
    victim = task.copy()
    victim.merge_lora()
    victim.model.float().eval()
    victim.model.requires_grad_(True)
    return victim


def _probability(scores: Mapping[str, TokenScores], ids: Sequence[str]) -> float:
    return float(np.mean([scores[i].probability for i in ids]))


def _plot(half: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> Plot:
    return Plot("curve", f"Relearning: probability {half}", "fine-tuning steps", "mean answer probability", series)
