"""``expunge bench classification``: the field's table, methods against UA, RA, TA, MIA, RTE and the average gap.

Source: the table of Jia et al. 2023 (arXiv:2304.04934) and Fan et al. 2024, SalUn (arXiv:2310.12508). Nothing in it is
better for being high or low: closest to the retrained model is best, and the row of a second retrained model says how
close seeds alone come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from expunge.audits.classification.average_gap import average_gap, gap_of_means
from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.predictor_data import CLASSIFICATION
from expunge.benchmarks.predictor_result import PredictorResult
from expunge.benchmarks.predictor_settings import COMMON
from expunge.benchmarks.predictor_tables import Distance, Plan, Record, check_plan, run_plan
from expunge.errors import BadInput, Problem
from expunge.methods.base import nested
from expunge.methods.run import unknown_methods
from expunge.registry import near_names
from expunge.reports.leaderboard import Column
from expunge.runs.facts import hardware, now, versions
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe

COLUMNS = (
    Column("gap", "Average gap", digits=2),
    Column("gap_of_means", "Gap of means", digits=2),
    Column("ua", "UA", digits=1),
    Column("ra", "RA", digits=1),
    Column("ta", "TA", digits=1),
    Column("mia", "MIA", digits=1),
    Column("fa", "FA", digits=1),
)
NOTES = (
    "UA, RA, TA, MIA-efficacy and FA in percent; mean over seeds with Student's t 95 % interval. Average gap: mean "
    "over UA, RA, TA and MIA of the distance to the model retrained for the same seed, averaged over seeds; gap of "
    "means: the same between means over seeds, as papers report it. The row 'retrain, other seed' is a second "
    "retrained model measured against the first: a gap as small as its is as good as retraining. RTE: seconds of the "
    "unlearning call alone; 'of retraining' compares CPU time.",
)


class ClassificationOptions(BenchOptions):
    """Options of ``expunge bench classification``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of the published sets; $EXPUNGE_DATA if left out. The digits need none."
    )
    dataset: tuple[str, ...] = Field(
        ("cifar10", "digits"), min_length=1, description=f"Data sets: {', '.join(CLASSIFICATION)}."
    )
    scenario: tuple[str, ...] = Field(
        (), description="random (10 %), class or group; all that a data set has if left out."
    )
    methods: tuple[str, ...] = Field((), description="Methods; all that serve the kind of model if left out.")
    trials: PositiveInt = Field(4, description="Settings tried per method on a seed of their own; 1 tunes nothing.")
    size: PositiveInt | None = Field(None, description="Training examples; a number of each set's own if left out.")
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/classification"), description="Folder for models and tables."
    )


class Classification(Benchmark[ClassificationOptions]):
    """Methods times seeds times scenarios on small classifiers that are trained and retrained here."""

    id = "classification"
    title = "The field's table for classifiers: UA, RA, TA, MIA, RTE and the average gap to retraining"
    paper = "Jia et al. 2023 (arXiv:2304.04934); Fan et al. 2024, SalUn (arXiv:2310.12508)"
    Options = ClassificationOptions

    def run(self, options: ClassificationOptions, progress: Progress) -> PredictorResult:
        plans, title = plans_of(options, CLASSIFICATION, options.scenario), self.title.partition(":")[0]
        return tables(title, options, plans, average_gap, COLUMNS, compare, NOTES, progress)


def compare(mine: Sequence[Record], oracles: Sequence[Record]) -> Mapping[str, Sequence[float]]:
    """Return the average gap of every seed, and the gap of the means over seeds."""
    each = [average_gap(record, oracle) for record, oracle in zip(mine, oracles, strict=True)]
    return {"gap": each, "gap_of_means": [gap_of_means(mine, oracles)]}


def plans_of(options: Any, known: Mapping[str, Any], scenarios: Sequence[str], *, first: bool = False) -> list[Plan]:
    """Return one plan per data set.

    Args:
        options: those of a benchmark of this kind.
        known: the data sets that it has.
        scenarios: what is asked for; all that a data set has if empty.
        first: where nothing is asked for, take the first scenario of each data set instead of all.

    Raises:
        BadInput: unknown data sets, or a scenario that none of them has.
    """
    problems = [
        Problem("--dataset", f"'{name}' is not one of this benchmark", near_names(name, list(known)))
        for name in options.dataset
        if name not in known
    ]
    there = [name for name in options.dataset if name in known]
    offered = list(dict.fromkeys(s for name in there for s in known[name].scenarios))
    problems += [
        Problem("--scenario", f"'{name}' is a scenario of none of the data sets", near_names(name, offered))
        for name in scenarios
        if name not in offered
    ]
    given = nested(read_recipe(None, {"model": "-", "forget": "-"}, options.overrides).settings)
    plans = []
    for name in dict.fromkeys(there):
        own = list(known[name].scenarios)
        usual = own[:1] if first else own
        chosen = tuple(s for s in own if s in (scenarios or usual))
        if not chosen:
            if set(scenarios) & set(offered):
                what = f"{name} has none of {', '.join(scenarios)}"
                problems.append(Problem("--scenario", what, f"it has {', '.join(known[name].scenarios)}"))
            continue
        plans.append(
            Plan(
                name, options.data, options.size, chosen, options.methods, tuple(dict.fromkeys(options.seeds)),
                options.trials, given, options.out, options.jobs,
            )
        )  # fmt: skip
    if problems:
        raise BadInput([*problems, *unknown_methods(options.methods)])
    return plans


def facts_of(options: Any, **more: Any) -> dict[str, Any]:
    """Return what a result says of how it was made."""
    return {
        "date": now(), "versions": versions(), "hardware": hardware(), "seeds": list(options.seeds),
        "trials": options.trials, "common": dict(COMMON), "overrides": list(options.overrides), **more,
    }  # fmt: skip


def tables(
    title: str,
    options: Any,
    plans: Sequence[Plan],
    distance: Distance,
    columns: tuple[Column, ...],
    compare: Any,
    notes: tuple[str, ...],
    progress: Progress,
) -> PredictorResult:
    """Check all plans, then run them, and write their tables."""
    for plan in plans:
        check_plan(plan)
    found = {plan.dataset: run_plan(plan, distance, progress) for plan in plans}
    result = PredictorResult(title, found, columns, compare, notes, facts_of(options))
    result.write(options.out)
    return result
