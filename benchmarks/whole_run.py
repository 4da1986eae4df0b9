"""A whole default run: which share of its compute goes into auditing?

    python benchmarks/whole_run.py [--method npo] [--people 200] [--out DIR] [--json FILE]

A fictitious world with 400 questions to forget (as many as TOFU's forget10), a model that knows it and an oracle. Then
one run with the method's own defaults: 10 epochs with an audit of a probe subset after each, the audits of a default
report on the unlearned model, the original and the oracle, report written. Prints FLOPs and seconds per stage, ratio
first. The learning rate is raised to what a small model needs, which changes no cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.runs.demo import SHAPE, TRAINING, write_lines
from expunge.runs.job import run_job
from expunge.runs.progress import Progress
from expunge.runs.recipe import read_recipe
from expunge.runs.workers import Training, run_trainings


def main() -> None:
    """Prepare, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="npo")
    parser.add_argument("--people", type=int, default=200)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="expunge-whole-run-"))
    request = FictitiousWorld(people=arguments.people, seed=0).split(forget=0.2, holdout=0.1)
    data = {role: out / f"data/{role}.jsonl" for role in request.sets()}
    (out / "data").mkdir(parents=True, exist_ok=True)
    for role, examples in request.sets().items():
        write_lines(data[role], examples)
    texts = [f"{row['prompt']} {row['answer']}" for examples in request.sets().values() for row in examples.to_list()]
    small_tokenizer(texts, 2048).save_pretrained(out / "tokenizer")
    common: dict[str, Any] = {"data": data, "tokenizer": out / "tokenizer", "shape": SHAPE}
    settings = {**TRAINING, "epochs": 10}
    run_trainings(
        [
            Training(
                out / "original", "original", settings={**settings, "seed": 1}, roles=("forget", "retain"), **common
            ),
            Training(out / "oracle", "oracle", settings={**settings, "seed": 2}, roles=("retain",), **common),
        ],
        Progress(),
    )
    steps = -(-len(request.forget) // 32)
    recipe = read_recipe(
        None,
        {
            "model": str(out / "original/model"), "oracle": [str(out / "oracle/model")], "method": arguments.method,
            **{role: str(path) for role, path in data.items()},
            "settings": {"learning_rate": 3e-4, "stop": {"every": steps}},
        },
    )  # fmt: skip
    done = run_job(recipe, out / f"run-{arguments.method}", overwrite=True)
    assert done is not None
    stages = {k: v for k, v in done.report.cost.items() if k != "retraining"}
    inside = stages.get("audits while forgetting", {"flops": 0.0, "seconds": 0.0})
    forgetting = stages["forgetting"]
    auditing = {k: stages["proving"][k] + inside[k] for k in ("flops", "seconds")}
    for unit in ("flops", "seconds"):
        share = auditing[unit] / (auditing[unit] + forgetting[unit])
        print(
            f"{share:5.2f} of {unit:8} on auditing (target 0.50): forgetting {forgetting[unit]:.4g}, "
            f"while forgetting {inside[unit]:.4g}, afterwards {stages['proving'][unit]:.4g}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(stages, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
