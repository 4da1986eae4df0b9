"""How often the verdict is wrong on real models: independent retrains, untouched models, a refusing wrapper.

    python benchmarks/verdict_calibration.py [--seeds 20] [--people 40] [--jobs 2] [--out DIR] [--json FILE]

A tiny world: an original model, two oracles, and per seed one more retrain without the forgotten people (which must
not come out "not removed") and one more model that knows everybody (which must). A wrapper that answers every question
about the forgotten with a refusal must come out "not removed" too. Prints the counts with Clopper-Pearson intervals.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from expunge.audits.intervals import clopper_pearson
from expunge.audits.suite import run_audits
from expunge.data.request_files import read_request
from expunge.runs.audit import audit
from expunge.runs.demo import make_world
from expunge.runs.progress import Progress
from expunge.runs.workers import Training, run_trainings
from expunge.tasks.causal_lm import CausalLM
from expunge.verdict.decision import decide

SHAPE = {"hidden": 64, "layers": 2, "heads": 4}
TRAINING = {
    "epochs": 40, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 0.0, "warmup": 0.1, "schedule": "cosine",
}  # fmt: skip
AUDITS = ("probability", "rouge", "truth_ratio", "extraction_strength", "relearning")


class Refuses:
    """A model in front of which somebody put a refusal: generations are refused, the weights are as they were."""

    def __init__(self, inner: CausalLM, prompts: set[str]):
        self.inner, self.prompts, self.cost = inner, prompts, inner.cost
        self.source = "refusing wrapper"

    def score(self, pairs):
        """Scores of the model behind."""
        return self.inner.score(pairs)

    def generate(self, prompts, max_new_tokens):
        """A refusal for the forgotten questions, the model's answer for the others."""
        answers = self.inner.generate(prompts, max_new_tokens)
        return ["I cannot help with that." if p in self.prompts else a for p, a in zip(prompts, answers, strict=True)]

    def copy(self):
        """Whoever takes the wrapper apart has the model."""
        return self.inner.copy()


class Told(Progress):
    """Prints one line per stage and per tenth of the steps."""

    def stage(self, title: str) -> None:
        """Print the stage."""
        print(title, flush=True)


def main() -> None:
    """Train, judge, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--oracles", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="expunge-calibration-"))
    data = make_world(out, arguments.people, 0)
    common: dict[str, Any] = {"data": data, "tokenizer": out / "models/tokenizer", "shape": SHAPE}

    def training(kind: str, seed: int) -> Training:
        roles: Any = ("retain",) if kind == "retrain" else ("forget", "retain")
        return Training(
            out / f"models/{kind}-{seed}", f"{kind} {seed}", settings={**TRAINING, "seed": seed}, roles=roles, **common
        )

    count = max(arguments.oracles)
    wanted = [training("original", 0)] + [training("retrain", 10_000 + k) for k in range(count)]
    wanted += [training(kind, 1 + s) for s in range(arguments.seeds) for kind in ("retrain", "original")]
    Told().stage(f"training {len(wanted)} models")
    run_trainings(wanted, Told(), arguments.jobs)

    def load(kind: str, seed: int) -> CausalLM:
        return CausalLM.load(out / f"models/{kind}-{seed}/model")

    request = read_request(data["forget"], data["retain"], data["holdout"])
    original = load("original", 0)
    oracles = [load("retrain", 10_000 + k) for k in range(count)]
    results: dict[str, Counter[str]] = {}
    records = []
    for seed in range(arguments.seeds):
        for kind in ("retrain", "original"):
            models = {"unlearned": load(kind, 1 + seed), "original": original}
            models |= {f"oracle-{k + 1}" if k else "oracle": oracle for k, oracle in enumerate(oracles)}
            found = run_audits(models, request, list(AUDITS), seed=seed)
            for used in arguments.oracles:
                keep = {"unlearned", "original", *(f"oracle-{k + 1}" if k else "oracle" for k in range(used))}
                evidence = [_only(e, keep) for finding in found.findings for e in finding.evidence]
                verdict = decide(evidence, removal_level="approximate")
                case = f"{'independent retrain' if kind == 'retrain' else 'untouched model'}, {used} oracle(s)"
                results.setdefault(case, Counter())[verdict.result] += 1
                rows = [r for r in verdict.to_dict()["rows"] if r["result"] in ("different",)]
                records.append(
                    {"case": case, "seed": seed, "result": verdict.result, "different": [r["statistic"] for r in rows]}
                )
        print(f"seed {seed + 1} of {arguments.seeds}: " + "; ".join(f"{r['result']}" for r in records[-4:]), flush=True)
    forgotten = set(request.forget["prompt"])
    refusing = audit(
        Refuses(original, forgotten), request, original=original, oracles=oracles,
        audits=["probability", "rouge", "truth_ratio", "extraction_strength"], removal_level="approximate",
    )  # fmt: skip
    results["refusing wrapper, not declared as a guard"] = Counter([str(refusing.verdict.result)])
    print(f"\n{'case':45} {'removed':>8} {'inconcl.':>9} {'not rem.':>9}   share 'not removed' [95 %]")
    table = []
    for case, counts in results.items():
        n, bad = sum(counts.values()), counts["not removed"]
        low, high = clopper_pearson(bad, n)
        share = f"{bad / n:.2f} [{low:.2f}, {high:.2f}]"
        print(f"{case:45} {counts['removed']:8d} {counts['inconclusive']:9d} {bad:9d}   {share}")
        table.append({"case": case, "n": n, **counts, "share_not_removed": bad / n, "low": low, "high": high})
    if arguments.json:
        arguments.json.write_text(json.dumps({"table": table, "runs": records}, indent=1), encoding="utf-8")


def _only(evidence: Any, keep: set[str]) -> Any:
    from dataclasses import replace

    return replace(
        evidence,
        values={m: v for m, v in evidence.values.items() if m in keep},
        control={m: v for m, v in evidence.control.items() if m in keep},
    )


if __name__ == "__main__":
    main()
