"""What choosing a worst-case forget set costs as the training set grows, beside retraining once.

    python benchmarks/forget_sets.py --data FOLDER [--sizes 1000 4000 16000] [--rounds 3] [--iterations 4] [--json FILE]

Rows of the census (adult), a table classifier with two hidden layers of 64 (``TableInputs``, 128 rows per step of
training, 256 per step of the search), a tenth to forget. Timed are: training it once (20 epochs, which is also what
retraining costs), the search with steps along signs and the one through all steps (10 passes over the training set per
iteration, both from the same model), and the largest margins. CPU seconds of one thread, medians over rounds that
alternate. Every iteration of a search starts from the same model and costs the same, so searches of one and of a few
are timed, and a whole one of 20 is the first and 19 times what each further one adds. The exponent is the slope of log
seconds over log size between the smallest and the largest: 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from expunge.data import known_sets
from expunge.data.scenarios import drawn
from expunge.forget_sets.select import select_forget_set
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.runs import facts
from expunge.tasks.predictor import Predictor
from expunge.tasks.table_inputs import TableInputs

TRAINING = {
    "epochs": 20, "batch_size": 128, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
WHOLE = 20  # iterations of a search by default


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call and what it gave."""
    began = time.process_time()
    found = call()
    return time.process_time() - began, found


def measure(train: Dataset, test: Dataset, iterations: int, rounds: int) -> dict[str, float]:
    """Return median CPU seconds on one training set, by what was timed; of a search, those of a whole one."""
    start = Predictor.of_table(TableInputs.fit(train, missing="mean"), sorted(set(train["label"])))
    request = DeletionRequest(test, train)
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        spent, outcome = timed(partial(unlearn, start, request, "retrain", settings={**TRAINING, "seed": number}))
        times.setdefault("training", []).append(spent)
        choose = partial(select_forget_set, train, task=outcome.model)
        for form in ("sign", "unrolled"):
            one, several = (
                timed(partial(choose, selector="worst_case", settings={"form": form, "iterations": count}))[0]
                for count in (1, iterations)
            )
            times.setdefault(form, []).append(one + (WHOLE - 1) * (several - one) / (iterations - 1))
        times.setdefault("margin", []).append(timed(partial(choose, selector="margin"))[0])
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the published sets; $EXPUNGE_DATA if left out")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.iterations < 2:
        parser.error("--iterations: 2 or more, to tell what each adds from what a search costs once")
    torch.set_num_threads(1)
    people = known_sets.adult(given.data)
    order = drawn(people, max(given.sizes) + 500, seed=0)
    test = people.select(order[-500:])
    rows: dict[int, dict[str, float]] = {}
    print(f"{'rows':>6} {'':8} {'of training':>12} {'CPU s':>9}")
    for size in given.sizes:
        rows[size] = measure(people.select(order[:size]), test, given.iterations, given.rounds)
        once = rows[size]["training"]
        for name, spent in rows[size].items():
            print(f"{size:6} {name:8} {spent / once:11.2f}x {spent:9.2f}")
    low, high = min(given.sizes), max(given.sizes)
    exponents = {
        name: math.log(rows[high][name] / rows[low][name]) / math.log(high / low) for name in rows[low] if high > low
    }
    print("exponents: " + ", ".join(f"{name} {value:.2f}" for name, value in exponents.items()))
    if given.json:
        command = f"python benchmarks/forget_sets.py --rounds {given.rounds} --iterations {given.iterations}"
        result = {
            "command": command, "date": facts.now(), "commit": facts.commit(), "hardware": facts.hardware(),
            "versions": facts.versions(), "whole_search_iterations": WHOLE, "training": TRAINING,
            "seconds": {str(size): found for size, found in rows.items()}, "exponents": exponents,
        }  # fmt: skip
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
