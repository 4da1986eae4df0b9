"""``expunge bench worst_case``: methods on random, worst-case and easiest forget sets of one size.

Source: Fan et al. 2024, Challenging Forgets (arXiv:2403.07362), table 1. What a worst-case set does to a method is the
change of its average gap: each set has retrained models of its own, and these predict a worst-case set as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from expunge.audits.classification.average_gap import average_gap
from expunge.benchmarks.base import Benchmark, BenchOptions, Flag
from expunge.benchmarks.classification import COLUMNS, NOTES, compare, facts_of, plans_of
from expunge.benchmarks.predictor_data import CLASSIFICATION, known_data
from expunge.benchmarks.predictor_result import ORACLE, PredictorResult
from expunge.benchmarks.predictor_tables import Found, check_plan, run_plan
from expunge.benchmarks.worst_case_sets import SetsPlan, make_sets, selector_settings
from expunge.errors import BadInput, Problem
from expunge.reports.leaderboard import CellValue, Column, over_seeds, to_markdown
from expunge.requests.request import example_id
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe

# Those of the paper's table that this house has, plain retraining apart.
METHODS = (
    "finetune", "cf_k", "l1_sparse", "scrub", "random_label", "boundary_shrink", "boundary_expand", "salun",
)  # fmt: skip

TUNED = {
    "random": "Every method has the settings that were chosen for it on random sets, on all sets.",
    "each": "Settings were chosen on each kind of set anew; where the original is as near as any, that is to do least.",
}


class WorstCaseOptions(BenchOptions):
    """Options of ``expunge bench worst_case``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of the published sets; $EXPUNGE_DATA if left out. The digits need none."
    )
    dataset: tuple[str, ...] = Field(
        ("digits", "cifar10"), min_length=1, description=f"Data sets: {', '.join(CLASSIFICATION)}."
    )
    sets: tuple[str, ...] = Field(
        ("random", "worst_case", "easiest", "margin"), min_length=1, description="Selectors; see `expunge forget-sets`."
    )
    share: float = Field(0.1, gt=0, lt=1, description="Share of the training set that each of them takes.")
    select: Annotated[tuple[str, ...], Flag("--select", "KEY=VALUE", whole=True)] = Field(
        (), description="A setting of the selectors that know it, such as form=unrolled; repeatable."
    )
    methods: tuple[str, ...] = Field(METHODS, min_length=1, description="Methods, separated by commas.")
    trials: PositiveInt = Field(3, description="Settings tried per method and set on a seed of their own; 1 for none.")
    tune: Literal["random", "each"] = Field(
        "random", description="Settings are chosen on random sets and kept for the others, or on each kind of set."
    )
    size: PositiveInt | None = Field(None, description="Training examples; a number of each set's own if left out.")
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/worst_case"), description="Folder for models, sets and tables."
    )


class WorstCaseBench(Benchmark[WorstCaseOptions]):
    """Methods times seeds times forget sets, each compared with models retrained without the same set."""

    id = "worst_case"
    title = "Worst-case and easiest forget sets beside random ones: UA, RA, TA, MIA and the average gap to retraining"
    paper = "Fan et al. 2024, Challenging Forgets (arXiv:2403.07362)"
    Options = WorstCaseOptions

    def run(self, options: WorstCaseOptions, progress: Progress) -> WorstCaseResult:
        sets = tuple(dict.fromkeys(options.sets))
        given = dict(read_recipe(None, {"model": "-", "forget": "-"}, options.select).settings)
        settings = selector_settings(sets, given, options.share)
        if options.tune == "random" and "random" not in sets:
            what = "is random, and there are no random sets to choose settings on"
            raise BadInput(Problem("--tune", what, "add random to --sets, or give --tune each"))
        # The data sets are checked with a random forget set in the place of those that are still to be chosen.
        plain = plans_of(options, CLASSIFICATION, ("random",))
        for plan in plain:
            check_plan(plan)
        out = options.out / f"sets-{example_id({'settings': settings})[:8]}"
        found: dict[str, Found] = {}
        chosen: dict[str, Any] = {}
        for plan in plain:
            own = SetsPlan(**{**vars(plan), "scenarios": sets, "out": out})
            chosen[plan.dataset] = make_sets(own, settings, progress)
            if options.tune == "each":
                found[plan.dataset] = run_plan(own, average_gap, progress)
            else:
                found[plan.dataset] = _carried_over(own, progress)
        facts = facts_of(options, size=options.size, tune=options.tune, selectors=settings)
        result = WorstCaseResult("Forget sets", found, COLUMNS, compare, NOTES, facts, chosen)
        result.write(options.out)
        return result


def _carried_over(plan: SetsPlan, progress: Progress) -> Found:
    """Choose settings on random sets, and run the methods with them on all sets."""
    first = run_plan(replace(plan, scenarios=("random",)), average_gap, progress)
    others = tuple(name for name in plan.scenarios if name != "random")
    if not others:
        return first
    rest = run_plan(replace(plan, scenarios=others), average_gap, progress, fixed=first.settings["random"])
    order = {name: place for place, name in enumerate(plan.scenarios)}

    def ordered(values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(sorted(values.items(), key=lambda item: order[item[0]]))

    return Found(
        sorted([*first.records, *rest.records], key=lambda record: order[record["scenario"]]),
        first.tried,
        ordered({**first.settings, **rest.settings}),
        ordered({**first.left_out, **rest.left_out}),
        ordered({**first.retraining, **rest.retraining}),
    )


@dataclass(frozen=True)
class WorstCaseResult(PredictorResult):
    """The tables of every set, and before them one of what the sets have in common.

    Attributes:
        chosen: data set -> selector -> seed -> ids, history and seconds of the search.
    """

    chosen: Mapping[str, Any] = field(default_factory=dict)

    def gaps(self, dataset: str) -> tuple[list[dict[str, CellValue]], list[Column]]:
        """Return one row per method with its average gap on every set, and the change against random sets per seed."""
        sets = list(self.found[dataset].settings)
        each = {name: self._gaps_by_seed(dataset, name) for name in sets}
        rows: list[dict[str, CellValue]] = []
        for method in dict.fromkeys(m for found in each.values() for m in found):
            row: dict[str, CellValue] = {"method": method}
            for name in sets:
                row[name] = over_seeds(list(each[name].get(method, {}).values()))
                if name != "random" and "random" in each:
                    base = each["random"].get(method, {})
                    pairs = [gap - base[s] for s, gap in each[name].get(method, {}).items() if s in base]
                    row[f"{name} less random"] = over_seeds(pairs)
            rows.append(row)
        columns = [Column("method", "Method"), *(Column(name, f"Gap, {name}", digits=2) for name in sets)]
        if "random" in sets:
            columns += [Column(f"{n} less random", f"{n} less random", digits=2) for n in sets if n != "random"]
        return rows, columns

    def retrained(self, dataset: str) -> tuple[list[dict[str, CellValue]], list[Column]]:
        """Return one row per set: what a model retrained without it knows of it, and what choosing it cost."""
        rows: list[dict[str, CellValue]] = []
        found = self.found[dataset]
        for name in found.settings:
            cells = [r for r in found.records if r["scenario"] == name and r["method"] == ORACLE]
            row: dict[str, CellValue] = {"method": name}
            row |= {key: over_seeds([c[key] for c in cells]) for key in ("ua", "ra", "ta", "mia")}
            times = {c["seed"]: found.retraining[name][c["seed"]] for c in cells}
            mine = self.chosen[dataset][name]
            row["cost"] = over_seeds([mine[seed]["cpu_seconds"] / times[seed] for seed in times])
            rows.append(row)
        columns = [Column("method", "Forget set"), *(Column(k, k.upper(), digits=1) for k in ("ua", "ra", "ta", "mia"))]
        return rows, [*columns, Column("cost", "Choosing it, of retraining", digits=2)]

    def to_markdown(self) -> str:
        """Return the tables as Markdown."""
        parts = []
        for dataset in self.found:
            title = known_data(dataset).title
            rows, columns = self.retrained(dataset)
            note = "What the model retrained without each set knows of it: low UA is a set that others teach as well."
            parts.append(to_markdown(rows, columns, f"Retrained models: {title}", [note]))
            rows, columns = self.gaps(dataset)
            note = (
                "Average gap of each method to the model retrained without the same set; then, paired over seeds, how "
                "much larger it is than on random sets. 95 % interval of Student's t over seeds. "
                + TUNED[self.facts["tune"]]
            )
            parts.append(to_markdown(rows, columns, f"Average gap by forget set: {title}", [note]))
        return "\n".join([*parts, super().to_markdown()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values; of the sets their ids and histories."""
        return {**super().to_dict(), "chosen": dict(self.chosen)}

    def _gaps_by_seed(self, dataset: str, name: str) -> dict[str, dict[int, float]]:
        cells = [r for r in self.found[dataset].records if r["scenario"] == name]
        oracle = {r["seed"]: r for r in cells if r["method"] == ORACLE}
        found: dict[str, dict[int, float]] = {}
        for record in cells:
            if record["method"] != ORACLE and "failed" not in record:
                gap = average_gap(record, oracle[record["seed"]])
                found.setdefault(str(record["method"]), {})[int(record["seed"])] = gap
        return found
