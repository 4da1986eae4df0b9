"""Attacks on what was forgotten: CPU seconds and forward passes, batched over examples against one example at a time.

    python benchmarks/attacks.py [--people 4] [--json FILE]

Both run the same audits with the same budgets on the same two small models of the embedded world (untrained: time does
not depend on what they know), and must give the same numbers; the largest difference is printed. The second way puts
one sequence through the model at a time, as attack scripts that loop over prompts do. One thread, float32, one round.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch

from expunge.audits.observations import Observations
from expunge.audits.suite import run_one, select_audits
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.runs.facts import commit, hardware, now
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, small_llama

BUDGETS: dict[str, dict[str, Any]] = {
    "relearning": {"steps": (0, 2, 8), "learning_rates": (1e-4,)},
    "quantisation": {},
    "activation_steering": {},
    "soft_prompt": {"steps": (0, 5), "vectors": 8},
    "gcg": {"steps": (0, 3), "tokens": 8, "width": 32},
    "jailbreak": {},
    "ununlearning": {},
    "evaluation_awareness": {},
}


class OneByOne(CausalLM):
    """Scores one sequence per forward pass."""

    @property
    def tokens_per_forward(self) -> int:
        """So little that no two sequences share a pass."""
        return 1


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--people", type=int, default=4, help="people to be forgotten, ten facts each")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    torch.set_num_threads(1)
    request = FictitiousWorld(5 * args.people, 0).split(args.people, args.people)
    texts = [f"{row['prompt']} {row['answer']}" for rows in request.sets().values() for row in rows]
    tokenizer = small_tokenizer(texts)
    found: dict[str, dict[str, Any]] = {}
    print(f"# attacks, {len(request.forget)} facts, 2 models, {platform.machine()}, 1 thread")
    print(
        f"{'':22}{'ratio':>7}{'batched s':>11}{'one by one s':>14}{'forwards':>10}{'one by one':>12}{'difference':>12}"
    )
    for name, settings in BUDGETS.items():
        row: dict[str, Any] = {}
        values = []
        for way, kind in (("batched", CausalLM), ("one by one", OneByOne)):
            models = {}
            for model, seed in (("unlearned", 0), ("oracle", 1)):
                made = small_llama(tokenizer, Shape(hidden=128, layers=3, heads=4), seed)
                models[model] = kind(made.model.eval(), tokenizer)
            (audit,) = select_audits([name], {name: settings})
            seen = Observations(models, request)
            began = time.process_time()
            finding = run_one(audit, seen)
            row[way] = {
                "cpu_seconds": time.process_time() - began,
                "forwards": sum(cost.forwards for cost in seen.cost().values()),
            }
            if finding.status != "measured":
                raise RuntimeError(f"{name}: {finding.note}")
            values.append({(m, k): e.value for m, es in finding.estimates.items() for k, e in es.items()})
        apart = max(abs(values[1][k] - v) for k, v in values[0].items() if v is not None and values[1][k] is not None)
        a, b = row["batched"], row["one by one"]
        row["ratio"], row["difference"] = a["cpu_seconds"] / b["cpu_seconds"], apart
        found[name] = row
        print(
            f"{name:22}{row['ratio']:>7.3f}{a['cpu_seconds']:>11.2f}{b['cpu_seconds']:>14.2f}"
            f"{a['forwards']:>10}{b['forwards']:>12}{apart:>12.1e}",
            flush=True,
        )
    if args.json:
        facts = {
            "command": f"python benchmarks/attacks.py --people {args.people}", "date": now(), "commit": commit(),
            "hardware": hardware(), "seeds": [0],
        }  # fmt: skip
        args.json.write_text(json.dumps({"facts": facts, "attacks": found}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
