"""``expunge bench regression``: errors on what is kept and forgotten, and the distance to retrained predictions.

Source: the tables of Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196), on open tables: a region of
California's housing and an age band of abalone in the place of faces' ages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from expunge.benchmarks.base import Benchmark, Flag
from expunge.benchmarks.classification import ClassificationOptions, plans_of, tables
from expunge.benchmarks.predictor_data import REGRESSION
from expunge.benchmarks.predictor_result import PredictorResult
from expunge.benchmarks.predictor_tables import Record
from expunge.reports.leaderboard import Column
from expunge.runs.progress import Progress

COLUMNS = (
    Column("w1", "W1 to retrained", digits=2),
    Column("difference", "mean difference", digits=2),
    Column("mae_forget", "MAE, forget test", digits=2),
    Column("mae_retain", "MAE, retain test", digits=2),
    Column("mae_forgotten", "MAE, forget set", digits=2),
    Column("mia", "MIA, % members", digits=1),
)
NOTES = (
    "Mean over seeds with Student's t 95 % interval. W1: Wasserstein-1 between the predictions for the forget set of "
    "this model and of the one retrained for the same seed; mean difference: between the same predictions, example by "
    "example. MAE: mean absolute error on test examples like those to forget, on the other test examples, and on the "
    "forget set itself. MIA: share of the forget set that an attack on absolute errors takes for members. Closest to "
    "retraining is best; the row 'retrain, other seed' is a second retrained model measured against the first. RTE: "
    "seconds of the unlearning call alone; 'of retraining' compares CPU time.",
)


class RegressionOptions(ClassificationOptions):
    """Options of ``expunge bench regression``."""

    data: Annotated[str | None, Flag(metavar="FOLDER")] = Field(
        None, description="Folder of the published sets; $EXPUNGE_DATA if left out."
    )
    dataset: tuple[str, ...] = Field(
        tuple(REGRESSION), min_length=1, description=f"Data sets: {', '.join(REGRESSION)}."
    )
    scenario: tuple[str, ...] = Field(
        (), description="group (a region), range (an age band) or random (10 %); the first two if left out."
    )
    out: Annotated[Path, Flag(metavar="FOLDER")] = Field(
        Path("runs/regression"), description="Folder for models and tables."
    )


class Regression(Benchmark[RegressionOptions]):
    """Methods times seeds on small regressors of tables that are trained and retrained here."""

    id = "regression"
    title = "Regressors of tables: errors, W1 to retrained predictions, membership and time"
    paper = "Tarun et al. 2023, Deep Regression Unlearning (arXiv:2210.08196)"
    Options = RegressionOptions

    def run(self, options: RegressionOptions, progress: Progress) -> PredictorResult:
        plans, title = plans_of(options, REGRESSION, options.scenario, first=True), self.title.partition(":")[0]
        return tables(title, options, plans, distance, COLUMNS, compare, NOTES, progress)


def distance(record: Mapping[str, Any], oracle: Mapping[str, Any]) -> float:
    """Return W1 on the forget set plus the difference of the errors on what is kept, in the unit of the data."""
    return float(record["w1"]) + abs(float(record["mae_retain"]) - float(oracle["mae_retain"]))


def compare(mine: Sequence[Record], oracles: Sequence[Record]) -> Mapping[str, Sequence[float]]:
    """Return nothing more: distances to the retrained model are measured in every cell."""
    del mine, oracles
    return {}
