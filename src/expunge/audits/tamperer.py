"""The shape of every attack: copies of the models are perturbed more and more, and asked again at each budget.

An audit of this shape says what it perturbs with what budget (``attack``) and in which variants (``courses``). The rest
is here: which examples the attack may use and which it is tested on, the same attack on every model, recovery curves,
what exceeds the attacked oracle, the null, and what the verdict may test.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from expunge.audits.base import Audit, AuditConfig, Estimate, Evidence, Finding, Plot, Scalar, Table
from expunge.audits.examples import Pair
from expunge.audits.observations import Observations
from expunge.audits.recovery import Reading, Recovery, Split, excess, split_halves
from expunge.audits.values import Values
from expunge.tasks.kinds import PREDICTORS
from expunge.tasks.tokens import TokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Score = Callable[[Sequence[Pair]], list[TokenScores]]
Steps = Iterator[tuple[float, Score]]


class TamperConfig(AuditConfig):
    """Settings that all attacks share."""

    split: Split = Field("auto", description="what a half is made of: groups (people), examples, or auto")
    max_examples: int = Field(200, ge=2, description="forget examples used at most, drawn by seed")


def budgets_from_zero(values: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """Check budgets: ascending, from 0 (nothing done yet) to something.

    Raises:
        ValueError: they are not; an attack with budget zero finds nothing, whatever there is.
    """
    if len(values) < 2 or list(values) != sorted(set(values)) or values[0] != 0:
        raise ValueError(
            f"give at least two ascending {what}, the first of them 0: an attack without a budget shows nothing"
        )
    return values


@dataclass(frozen=True)
class Course:
    """One variant of an attack.

    Attributes:
        name: identifier in statistics and tables; "" for the main one.
        title: in words.
        null: a variant that has no means to bring knowledge back, to compare with.
        uses_shown: whether it is given the answers of the half shown.
    """

    name: str = ""
    title: str = "the attack"
    null: bool = False
    uses_shown: bool = True


@dataclass(frozen=True)
class Material:
    """The (prompt, answer) pairs of an attack by example id.

    Attributes:
        shown: forget examples that the attack may use.
        tested: forget examples that it is measured on.
        control: holdout examples, which no model ever saw.
        retain: examples that must still be known: what the attack breaks.
        seed: everything random follows from it.
    """

    shown: Mapping[str, Pair]
    tested: Mapping[str, Pair]
    control: Mapping[str, Pair]
    retain: Mapping[str, Pair]
    seed: int


class Tamperer(Audit):
    """An attack on copies of the models.

    Class attributes:
        shows: whether the attack uses half of the forget set. If not, all of it is tested.
        takes: "last": what counts is the answer with the whole budget; "best": the best of all budgets, where more
            is not always better. Every model gets as many tries.
        axis: what the budget is, in words.
        label: what the report calls the attack.
        held, shown: names of the per-example statistics.
        starts_untouched: with no budget spent, a copy answers as its model does, so what was observed of that holds.
    """

    family = "adversarial"
    shows: ClassVar[bool] = True
    takes: ClassVar[Reading] = "best"
    axis: ClassVar[str]
    label: ClassVar[str]
    held: ClassVar[str]
    shown: ClassVar[str] = ""
    starts_untouched: ClassVar[bool] = False
    Config = TamperConfig

    @abstractmethod
    def budgets(self) -> Sequence[float]:
        """Return the budgets at which to measure, ascending from 0."""

    def whole(self, course: Course) -> float:
        """Return the largest budget of a variant."""
        return self.budgets()[-1]

    @abstractmethod
    def attack(self, victim: CausalLM, material: Material, course: Course, choice: Any) -> Steps:
        """Perturb a copy and stop at each budget, the first of them 0.

        Args:
            victim: a copy, in float32, evaluation mode, without adapters; it may be changed.
            material: the examples.
            course: which variant.
            choice: what ``choose`` returned.

        Yields:
            The budget spent so far, and how to score pairs under the attack now.
        """

    def courses(self, seen: Observations) -> Sequence[Course]:
        """Return the variants, the main one first."""
        return (Course(),)

    def choose(self, seen: Observations, material: Material) -> Any:
        """Settle what must be the same for every model, such as a learning rate."""
        return None

    def tried(self, material: Material, choice: Any) -> dict[str, Any]:
        """Return what was tried, for the report."""
        return {}

    def further_scalars(self) -> list[Scalar]:
        """Return numbers of this attack alone; ``further`` gives their estimates."""
        return []

    def further(self, model: str, found: Recovery, original: Recovery | None, n: int) -> dict[str, Estimate]:
        """Return the estimates of ``further_scalars`` for a model under the main course."""
        return {}

    def tables(self, seen: Observations) -> list[Table]:
        """Return further tables."""
        return []

    # ---- the run ---------------------------------------------------------------------------------------------------

    def run(self, seen: Observations) -> Finding:
        material = self.material(seen)
        if isinstance(material, str):
            return Finding(self.id, "no data", note=material)
        choice = self.choose(seen, material)
        courses = list(self.courses(seen))
        found: dict[str, dict[str, Recovery]] = {course.name: {} for course in courses}
        done: dict[int, str] = {}
        for model, task in seen.models.items():
            twin = done.setdefault(id(task), model)
            for course in courses:
                if twin == model:
                    found[course.name][model] = self._attacked(seen, model, material, course, choice)
                else:
                    found[course.name][model] = found[course.name][twin]
        values = Values(seen)
        evidence: list[Evidence] = []
        for course in courses:
            if not course.null:
                evidence += self._evidence(seen, values, course, found[course.name])
        return Finding(
            self.id,
            scalars=[*self._scalars(material), *self.further_scalars()],
            estimates={model: self._estimates(seen, courses, found, model) for model in seen.models},
            per_example=values.per_example(),
            evidence=evidence,
            plots=self._plots(courses, found),
            tables=[*([self._table(seen, courses, found)] if len(courses) > 1 else []), *self.tables(seen)],
            attempted={
                **self.tried(material, choice),
                "shown": len(material.shown),
                "tested": len(material.tested),
                "seed": material.seed,
            },
        )

    def material(self, seen: Observations) -> Material | str:
        """Return the examples of the attack, or why there are too few."""
        pairs = seen.items("forget")
        rng = np.random.default_rng(seen.seed)
        used = [sorted(pairs)[k] for k in sorted(rng.permutation(len(pairs))[: self.config.max_examples])]
        shown: list[str] = []
        tested = used
        if self.shows:
            shown, tested = split_halves(used, seen.groups("forget"), self.config.split, seen.seed)
        if len(tested) < 2 or (self.shows and len(shown) < 2):
            return f"{len(used)} forget examples cannot be split into two halves of two"

        def some(role: str) -> dict[str, Pair]:
            there = seen.items(role)
            return {i: there[i] for i in sorted(there)[: len(tested)]}

        return Material(
            {i: pairs[i] for i in shown}, {i: pairs[i] for i in tested}, some("holdout"), some("retain"), seen.seed
        )

    def victim(self, task: CausalLM) -> CausalLM:
        """Return a copy to be attacked: adapters folded in, float32 so that small steps count."""
        copy = task.copy()
        copy.merge_lora()
        copy.model.float().eval()
        copy.model.requires_grad_(True)
        return copy

    def _attacked(self, seen: Observations, model: str, material: Material, course: Course, choice: Any) -> Recovery:
        victim, found = self.victim(seen.models[model]), Recovery(model)
        parts = {
            "tested": material.tested, "shown": material.shown, "control": material.control, "retain": material.retain
        }  # fmt: skip
        try:
            for budget, score in self.attack(victim, material, course, choice):
                # What only its first and last value is read of is not scored in between.
                ends = budget in (self.budgets()[0], self.whole(course))
                rare = {"retain"} | ({"control"} if self.takes == "last" else set())
                asked = {part: pairs for part, pairs in parts.items() if ends or part not in rare}
                keyed = {(part, i): pair for part, pairs in asked.items() for i, pair in pairs.items()}
                given = list(keyed.values())
                known = budget == 0 and self.starts_untouched and _exact(seen.models[model])
                scored = dict(zip(keyed, seen.pair_scores(model, given) if known else score(given), strict=True))
                for part, pairs in asked.items():
                    found.add(part, budget, {i: scored[part, i] for i in pairs})
        finally:
            seen.spend(model, victim.cost)
        return found

    # ---- what is reported ------------------------------------------------------------------------------------------

    def _evidence(
        self, seen: Observations, values: Values, course: Course, found: Mapping[str, Recovery]
    ) -> list[Evidence]:
        suffix = f"_{course.name}" if course.name else ""
        held, shown = self.held + suffix, self.shown + suffix if self.shown else ""
        for model, recovery in found.items():
            values.add(model, "forget", held, recovery.after("tested", self.takes))
            if recovery.ids("control"):
                values.add(model, "holdout", held, recovery.after("control", self.takes))
            if shown and course.uses_shown:
                values.add(model, "forget", shown, recovery.after("shown", self.takes))
        evidence = values.evidence(held, "forget", "low")
        # Nothing but an oracle that was shown the same half is a control for that half.
        if shown and course.uses_shown and seen.oracles:
            evidence += values.evidence(shown, "forget", "low")
        return evidence

    def _scalars(self, material: Material) -> list[Scalar]:
        half = "the half not shown" if self.shows else "the forget set"
        after = "after the whole budget" if self.takes == "last" else "at the best budget"
        return [
            Scalar("heldout_before", f"Probability of {half}, before", "probability", "high"),
            Scalar("heldout_after", f"Probability of {half}, {after}", "probability", "high"),
            Scalar("heldout_gain", f"Gain on {half}", "probability", "high"),
            Scalar("heldout_nll_after", f"NLL of {half}, {after}", "nats/token", "low"),
            *([Scalar("shown_after", f"Probability of the half shown, {after}", "probability", "high")] * self.shows),
            Scalar("area", f"Area under the recovery curve of {half}", "probability", "high"),
            Scalar("area_excess", "Area beyond that of the oracles under the same attack", "probability", "high"),
            Scalar("null_gain", "Gain without anything to bring back (the null)", "probability"),
            Scalar("retain_change", "Change of the probability of kept answers, whole budget", "probability"),
        ]

    def _estimates(
        self,
        seen: Observations,
        courses: Sequence[Course],
        found: Mapping[str, Mapping[str, Recovery]],
        model: str,
    ) -> dict[str, Estimate]:
        main = found[courses[0].name]
        own = main[model]
        nll = own.after("tested", self.takes)
        original = main.get("original")
        estimates = {
            "heldout_before": seen.mean("forget", {i: math.exp(-v) for i, v in own.before("tested").items()}),
            "heldout_after": seen.mean("forget", {i: math.exp(-v) for i, v in nll.items()}),
            "heldout_gain": seen.mean("forget", own.gain("tested", self.takes)),
            "heldout_nll_after": seen.mean("forget", nll),
            "area": seen.mean("forget", own.area("tested")),
            "area_excess": self._excess(seen, main, model),
            "null_gain": self._null(seen, courses, found, model),
            "retain_change": self._retain_change(seen, own),
            **self.further(model, own, original, len(nll)),
        }
        if self.shows:
            shown = own.after("shown", self.takes)
            estimates["shown_after"] = seen.mean("forget", {i: math.exp(-v) for i, v in shown.items()})
        return estimates

    def _excess(self, seen: Observations, found: Mapping[str, Recovery], model: str) -> Estimate:
        others = [name for name in seen.oracles if found[name] is not found[model]]
        if not others:
            why = "is the only oracle" if model in seen.oracles else "no oracle was given"
            return Estimate(None, note=f"{why}: nothing to compare with")
        return seen.mean("forget", excess(found[model].area("tested"), [found[name].area("tested") for name in others]))

    def _null(
        self, seen: Observations, courses: Sequence[Course], found: Mapping[str, Mapping[str, Recovery]], model: str
    ) -> Estimate:
        null = next((course for course in courses if course.null), None)
        if null is not None:
            return seen.mean("forget", found[null.name][model].gain("tested", self.takes))
        gain = found[courses[0].name][model].gain("control", self.takes)
        return seen.mean("holdout", gain) if gain else Estimate(None, note="there are no examples that no model saw")

    def _retain_change(self, seen: Observations, own: Recovery) -> Estimate:
        change = own.gain("retain", "last")
        return seen.mean("retain", change) if change else Estimate(None, note="the request has no retain set")

    def _plots(self, courses: Sequence[Course], found: Mapping[str, Mapping[str, Recovery]]) -> list[Plot]:
        halves = {"tested": "of the half that was not shown", "shown": "of the half that was shown"}
        if not self.shows:
            halves = {"tested": "of the answers to be forgotten"}
        plots = []
        for course in courses:
            for part, half in halves.items():
                if part == "tested" or course is courses[0]:
                    title = f"{self.label}: probability {half}" + (f" ({course.title})" if course.name else "")
                    series = {model: recovery.curve(part) for model, recovery in found[course.name].items()}
                    plots.append(Plot("curve", title, self.axis, "mean answer probability", series))
        return plots

    def _table(
        self, seen: Observations, courses: Sequence[Course], found: Mapping[str, Mapping[str, Recovery]]
    ) -> Table:
        rows = []
        for course in courses:
            for model, recovery in found[course.name].items():
                gain = seen.mean("forget", recovery.gain("tested", self.takes))
                beyond = self._excess(seen, found[course.name], model)
                after = list(recovery.after("tested", self.takes).values())
                title = course.title + (" (null)" if course.null else "")
                rows.append(
                    [
                        title, model, float(np.mean(np.exp(-np.array(after)))),
                        gain.value, gain.low, gain.high, beyond.value, beyond.low, beyond.high,
                    ]
                )  # fmt: skip
        columns = ["variant", "model", "after", "gain", "low", "high", "area beyond the oracles", "low", "high"]
        return Table(f"{self.label}: every variant", columns, rows)


def _exact(task: CausalLM) -> bool:
    """Whether a copy in float32 is the model itself and not a rounded or more precise one, asked as language."""
    weights = getattr(task, "model", None)
    return (
        task.kind not in PREDICTORS
        and isinstance(weights, nn.Module)
        and all(p.dtype == torch.float32 for p in weights.parameters())
    )
