"""Deep regression: a proxy that never saw the data leads a regressor nearer to retraining than fine-tuning does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from expunge.benchmarks.predictor_data import known_data
from expunge.benchmarks.predictor_measures import measure_regressor
from expunge.data.scenarios import value_range
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.outcomes import Numbers
from expunge.tasks.predictor import Predictor
from expunge.tasks.table_inputs import TableInputs

LOWEST = 0.3
TRAINING = {"epochs": 60, "batch_size": 64, "learning_rate": 2e-3, "warmup": 0.1, "schedule": "cosine"}
STEADY = {"warmup": 0.0, "schedule": "constant", "learning_rate": 1e-3}
PROXY = {"proxy_epochs": 8, "proxy_learning_rate": 1e-2}
NEAR = 0.2
SETS = ("friedman", "abalone")
REPORTED = ("w1", "mae_forget", "mae_retain", "mia", "difference")


class DeepRegressionReproduction(Reproduction):
    """A regressor of made-up numbers (Friedman's first function, 2,000 rows) and one of abalone's age are to forget the
    examples with the lowest 30 % of targets, and shells of fewer than seven rings.

    Methods: fine-tuning on what is kept (5 passes), Gaussian amnesiac fine-tuning, and Blindspot with a proxy of 8
    passes that unlearns for as many steps as one pass over all data takes, and for three times as many. W1 is between
    the predictions for the forget set and those of a retrained model; a second retrained model says what seeds alone
    make. The number of passes was set before these seeds were run.
    """

    id = "deep_regression"
    title = "Blindspot brings a regressor's predictions nearer to the retrained model's than fine-tuning does"
    paper = "Tarun et al. 2023, Deep Regression Unlearning, arXiv:2210.08196"
    claim = (
        "W1 to the retrained model's predictions for the forget set: Blindspot less than fine-tuning, fine-tuning less "
        "than the original; the error on what is kept stays near retraining's"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        out: dict[str, float] = {}
        for name in SETS if bench.data is not None else SETS[:1]:
            bench.progress.stage(f"{name}, seed {seed}")
            train, test, start = _friedman(seed, bench.quick) if name == "friedman" else _abalone(bench)
            low, high = _band(name, train)
            request = value_range(train, low, high, unseen=test)
            found = _compare(start, train, test, request, seed, bench.quick)
            out |= {f"{name}_{key}": value for key, value in found.items()}
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        return [check for name in SETS if f"{name}_original_w1" in runs[0] for check in _judge(name, runs)]


def _friedman(seed: int, quick: bool) -> tuple[Dataset, Dataset, Predictor]:
    from sklearn.datasets import make_friedman1

    count = 400 if quick else 2000
    inputs, targets = make_friedman1(count + 1000, n_features=10, noise=1.0, random_state=seed)
    columns: dict[str, list[Any]] = {f"x{k}": inputs[:, k].tolist() for k in range(10)}
    columns["target"] = targets.tolist()
    columns["id"] = [example_id({"friedman": seed, "row": i}) for i in range(len(targets))]
    rows = Dataset.from_dict(columns)
    train, test = rows.select(range(count)), rows.select(range(count, len(rows)))
    return train, test, Predictor.of_table(TableInputs.fit(train), Numbers.fit(train), hidden=(128, 128))


def _abalone(bench: Workbench) -> tuple[Dataset, Dataset, Predictor]:
    train, test = known_data("abalone").read(bench.data)
    train = train.select(range(600)) if bench.quick else train
    return train, test, known_data("abalone").start(train)


def _band(name: str, train: Dataset) -> tuple[float, float]:
    if name == "abalone":
        return 1, 7
    ordered = sorted(train["target"])
    return ordered[0] - 1000, ordered[int(LOWEST * len(ordered))]


def _compare(
    start: Predictor, train: Dataset, test: Dataset, request: DeletionRequest, seed: int, quick: bool
) -> dict[str, float]:
    """Train, retrain twice, forget in every way and measure."""
    training = {**TRAINING, **({"epochs": 10} if quick else {})}

    def trained(what: DeletionRequest, weights: int) -> Predictor:
        outcome = unlearn(start, what, "retrain", settings={**training, "seed": weights})
        assert isinstance(outcome.model, Predictor)
        return outcome.model

    original = trained(DeletionRequest(test, train), 100 + seed)
    oracle, other = trained(request, 200 + seed), trained(request, 300 + seed)
    # An epoch of Blindspot is a pass over the forget set.
    passes = max(1, round(len(train) / len(request.forget)))
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "finetune": ("finetune", {"epochs": 5, "batch_size": 128}),
        "gaussian": ("gaussian_finetune", {"epochs": 1, "batch_size": 128}),
        "blindspot": ("blindspot", {**PROXY, "epochs": passes}),
        "blindspot_long": ("blindspot", {**PROXY, "epochs": 3 * passes}),
    }
    models = {"original": original, "retrain": oracle, "other": other}
    out: dict[str, float] = {}
    for name, (method, settings) in methods.items():
        outcome = unlearn(original, request, method, settings={**STEADY, **settings, "seed": seed})
        assert isinstance(outcome.model, Predictor)
        models[name] = outcome.model
        if "proxy" in outcome.config:
            scale = outcome.model.outcome.scale[0] if isinstance(outcome.model.outcome, Numbers) else 1.0
            out["proxy_retain_error"] = float(outcome.config["proxy"]["retain_error"]) * scale
    for name, model in models.items():
        found = measure_regressor(model, oracle, request, test, seed)
        out |= {f"{name}_{key}": found[key] for key in REPORTED}
    return out


def _judge(name: str, runs: Sequence[Mapping[str, float]]) -> list[Check]:
    def every(method: str, key: str = "w1") -> list[float]:
        return column(runs, f"{name}_{method}_{key}")

    def said(*methods: str, key: str = "w1") -> str:
        return ", ".join(f"{m} {mean(runs, f'{name}_{m}_{key}'):.3f}" for m in methods)

    nearer = all(b < f for b, f in zip(every("blindspot"), every("finetune"), strict=True))
    moved = all(f < o for f, o in zip(every("finetune"), every("original"), strict=True))
    kept = max(
        abs(a - b) / b for a, b in zip(every("blindspot", "mae_retain"), every("retrain", "mae_retain"), strict=True)
    )
    errors = [
        (abs(b - r), abs(f - r))
        for b, f, r in zip(
            every("blindspot", "mae_forget"), every("finetune", "mae_forget"), every("retrain", "mae_forget"),
            strict=True,
        )
    ]  # fmt: skip
    proxy = mean(runs, f"{name}_proxy_retain_error")
    return [
        Check(
            f"{name}: W1 to the retrained predictions is less after Blindspot than after fine-tuning, at every seed",
            nearer,
            said("blindspot", "finetune", "other")
            + f" (other: a second retrained model); the proxy's error on what is kept {proxy:.3f}, "
            f"three times as many steps give {mean(runs, f'{name}_blindspot_long_w1'):.3f}"
            + ("" if nearer else "; likely reason: a proxy this short predicts something else than retraining does"),
        ),
        Check(
            f"{name}: fine-tuning is nearer than the original, at every seed",
            moved,
            said("finetune", "original")
            + ("" if moved else "; likely reason: nothing in what is kept contradicts what was learned of the rest"),
        ),
        Check(
            f"{name}: after Blindspot the error on what is kept is within {NEAR:.0%} of retraining's",
            kept < NEAR,
            said("blindspot", "retrain", "original", key="mae_retain") + f"; at most {kept:.0%} apart",
        ),
        Check(
            f"{name}: its error on unseen examples like those forgotten is nearer to retraining's than fine-tuning's",
            all(b < f for b, f in errors),
            said("blindspot", "finetune", "retrain", "original", key="mae_forget"),
        ),
    ]
