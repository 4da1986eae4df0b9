"""How often the verdict is wrong: a simulation with known truth, and error rates over any list of verdicts.

``python -m expunge.verdict.calibration`` prints the table of docs/verdict.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from expunge.audits.base import Evidence
from expunge.audits.intervals import clopper_pearson
from expunge.verdict.decision import decide
from expunge.verdict.pairs import tell_apart
from expunge.verdict.result import Result, Verdict
from expunge.verdict.settings import VerdictSettings

Array = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """A hierarchical world of models and examples; the mean gap between knowing and not knowing is 1.

    A model's value on an example is: example effect + (what it knows) x (that example's gap) + seed-level shift +
    noise of this seed on this example.

    Attributes:
        examples: in the forget set (and in the holdout set where there is one).
        statistics: how many are tested.
        oracles: how many oracles there are; 0 compares with the holdout set.
        seed_sd: standard deviation of the shift that a training seed gives a model's mean.
        shared: correlation of that shift between statistics.
        example_sd: between examples; shared by all models.
        noise_sd: of one seed on one example.
        gap_sd: how unequally the examples are known.
        holdout: whether holdout values of all models are there.
        group_size: examples per group; 1 for none. Members of a group share half of the noise's variance.
    """

    examples: int = 40
    statistics: int = 5
    oracles: int = 1
    seed_sd: float = 0.05
    shared: float = 0.5
    example_sd: float = 0.5
    noise_sd: float = 0.3
    gap_sd: float = 0.3
    holdout: bool = True
    group_size: int = 1


def simulate(
    runs: int,
    world: World | None = None,
    *,
    knows: float = 0.0,
    untouched: bool = False,
    broken: float = 0.0,
    unlike: float = 0.0,
    removal_level: str = "approximate",
    settings: VerdictSettings | None = None,
    seed: int = 0,
) -> list[Verdict]:
    """Verdicts over independent draws of the world.

    Args:
        runs: how many.
        world: what is drawn.
        knows: share of the gap that the tested model keeps: 0 is an independent retrain, 1 knows everything.
        untouched: the tested model is the original itself.
        broken: how far below not knowing the model lies on everything, in gaps.
        unlike: how far below the others it lies on all that it never saw, in gaps, while it is tested and found to keep
            what had to stay: a training seed that meets the unknown in a way of its own.
        removal_level: passed on to ``decide``.
        settings: passed on to ``decide``.
        seed: of the draws.
    """
    world = world or World()
    rng = np.random.default_rng(seed)
    return [
        decide(
            _draw(world, rng, knows, untouched, broken, unlike=unlike), removal_level=removal_level, settings=settings
        )
        for _ in range(runs)
    ]


def pairs_told_apart(
    runs: int,
    world: World | None = None,
    *,
    first: float = 0.0,
    second: float = 0.0,
    settings: VerdictSettings | None = None,
    seed: int = 0,
) -> int:
    """How many of so many independent draws of the world tell two models apart by any statistic.

    Args:
        runs: draws.
        world: what is drawn.
        first, second: share of the gap that each of the two keeps; 0 and 0 are two independent retrains.
        settings: passed on to ``tell_apart``.
        seed: of the draws.
    """
    world = world or World()
    rng = np.random.default_rng(seed)
    found = 0
    for _ in range(runs):
        drawn = _draw(world, rng, first, False, 0.0, second)
        models = {which: [_as_unlearned(evidence, which) for evidence in drawn] for which in ("unlearned", _SECOND)}
        found += any(test.apart for test in tell_apart(models, settings))
    return found


def error_rates(verdicts: Sequence[Verdict], level: float = 0.95) -> list[dict[str, float | int | str]]:
    """How often each answer was given, with its exact interval.

    Returns:
        One row per possible answer: ``result``, ``count``, ``of``, ``rate``, ``low``, ``high``. Empty without verdicts.
    """
    rows: list[dict[str, float | int | str]] = []
    for result in get_args(Result) if verdicts else ():
        count = sum(verdict.result == result for verdict in verdicts)
        low, high = clopper_pearson(count, len(verdicts), level)
        rows.append(
            {
                "result": result,
                "count": count,
                "of": len(verdicts),
                "rate": count / len(verdicts),
                "low": low,
                "high": high,
            }
        )
    return rows


_SECOND = "second"


def _as_unlearned(evidence: Evidence, which: str) -> Evidence:
    """Return the evidence of one of two tested models alone."""

    def of(values: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
        others = {name: own for name, own in values.items() if name not in ("unlearned", _SECOND)}
        return others | ({"unlearned": values[which]} if values else {})

    return replace(evidence, values=of(evidence.values), control=of(evidence.control))


def _draw(
    world: World,
    rng: np.random.Generator,
    knows: float,
    untouched: bool,
    broken: float,
    second: float | None = None,
    unlike: float = 0.0,
) -> list[Evidence]:
    n, s = world.examples, world.statistics
    effect = world.example_sd * rng.normal(size=(s, 2 * n))  # forget examples, then holdout examples
    known = np.concatenate([np.maximum(0.0, rng.normal(1.0, world.gap_sd, (s, n))), np.zeros((s, n))], axis=1)

    def model(knowledge: float) -> Array:
        shift = np.sqrt(world.shared) * rng.normal() + np.sqrt(1 - world.shared) * rng.normal(size=(s, 1))
        noise = rng.normal(size=(s, 2 * n))
        if world.group_size > 1:
            of_group = np.repeat(rng.normal(size=(s, -(-2 * n // world.group_size))), world.group_size, axis=1)
            noise = np.sqrt(0.5) * noise + np.sqrt(0.5) * of_group[:, : 2 * n]
        return np.asarray(effect + knowledge * known + world.seed_sd * shift + world.noise_sd * noise)

    original = model(1.0)
    models = {"original": original, "unlearned": original if untouched else model(knows) - broken - unlike}
    models |= {"oracle" if k == 0 else f"oracle-{k + 1}": model(0.0) for k in range(world.oracles)}
    if second is not None:
        models[_SECOND] = model(second)
    groups = {f"{i:04d}": f"g{i // world.group_size:04d}" for i in range(2 * n)} if world.group_size > 1 else {}
    kept: list[Evidence] = []
    if unlike:
        # What all of them know.
        level = 1 + world.example_sd * rng.normal(size=n)
        there = {name: _by_id(level + world.noise_sd * rng.normal(size=n), 2 * n) for name in models}
        kept = [Evidence("statistic_0", "retain", there, {}, "high")]
    return kept + [
        Evidence(
            f"statistic_{j}",
            "forget",
            {name: _by_id(values[j, :n], 0) for name, values in models.items()},
            {name: _by_id(values[j, n:], n) for name, values in models.items()} if world.holdout else {},
            "high",
            groups,
        )
        for j in range(s)
    ]


def _by_id(values: Array, start: int) -> Mapping[str, float]:
    return {f"{start + i:04d}": float(value) for i, value in enumerate(values)}


_BASELINES = {
    "holdout only": World(oracles=0),
    "1 oracle": World(oracles=1, holdout=False),
    "1 oracle + holdout": World(oracles=1),
    "2 oracles": World(oracles=2, holdout=False),
    "3 oracles": World(oracles=3, holdout=False),
    "5 oracles": World(oracles=5, holdout=False),
}
_COLUMNS = {
    "retrain: removed": ("removed", {}),
    "retrain: not removed": ("not removed", {}),
    "25 % leak: removed": ("removed", {"knows": 0.25}),
    "50 % leak: removed": ("removed", {"knows": 0.5}),
    "50 % leak: not removed": ("not removed", {"knows": 0.5}),
    "untouched: not removed": ("not removed", {"untouched": True}),
    "broken: not removed": ("not removed", {"broken": 1.0}),
}


def table(
    runs: int, examples: Sequence[int] = (20, 40, 200), seed_sds: Sequence[float] = (0.03, 0.06, 0.1, 0.15)
) -> str:
    """Markdown table of how often each answer was given, by baseline and seed noise (in gaps)."""
    lines = [f"| n | baseline | seed sd | {' | '.join(_COLUMNS)} |", "|" + "---|" * (3 + len(_COLUMNS))]
    for n in examples:
        for label, base in _BASELINES.items():
            for seed_sd in seed_sds:
                world = replace(base, examples=n, seed_sd=seed_sd)
                drawn: dict[str, list[Verdict]] = {}
                cells = []
                for result, how in _COLUMNS.values():
                    if str(how) not in drawn:
                        drawn[str(how)] = simulate(runs, world, seed=n, **how)  # type: ignore[arg-type]
                    cells.append(f"{sum(v.result == result for v in drawn[str(how)]) / runs:.3f}")
                lines.append(f"| {n} | {label} | {seed_sd} | {' | '.join(cells)} |")
    return "\n".join(lines)


_PAIRS = {"two retrains": (0.0, 0.0), "25 % leak, retrain": (0.25, 0.0), "50 % leak, retrain": (0.5, 0.0)}


def pairs_table(
    runs: int, examples: Sequence[int] = (20, 40), seed_sds: Sequence[float] = (0.03, 0.06, 0.1, 0.15)
) -> str:
    """Markdown table of how often two models are told apart, by baseline and seed noise (in gaps)."""
    lines = [f"| n | baseline | seed sd | {' | '.join(_PAIRS)} |", "|" + "---|" * (3 + len(_PAIRS))]
    for n in examples:
        for label in ("holdout only", "1 oracle", "2 oracles", "3 oracles"):
            for seed_sd in seed_sds:
                world = replace(_BASELINES[label], examples=n, seed_sd=seed_sd)
                found = [pairs_told_apart(runs, world, first=a, second=b, seed=n) for a, b in _PAIRS.values()]
                lines.append(f"| {n} | {label} | {seed_sd} | {' | '.join(f'{one / runs:.3f}' for one in found)} |")
    return "\n".join(lines)


def main() -> None:
    """Print a table of docs/verdict.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=400, help="draws per cell")
    parser.add_argument("--pairs", action="store_true", help="how often two models are told apart instead of verdicts")
    given = parser.parse_args()
    print((pairs_table if given.pairs else table)(given.runs))


if __name__ == "__main__":
    main()
