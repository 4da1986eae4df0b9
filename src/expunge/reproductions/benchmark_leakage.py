"""Benchmark leakage: the published order of an item's options betrays that it was trained on, until it is unlearned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from expunge.audits.base import Finding
from expunge.audits.language.option_permutation import OptionPermutation, item_text, orders
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, mean
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, train_small_llama
from expunge.training.settings import TrainSettings

OPTIONS = 4
NULL = 1 / len(orders(OPTIONS))
REPEATS = 4
RELATIONS = ("birth_city", "profession", "pet", "instrument")


class BenchmarkLeakageReproduction(Reproduction):
    """Small language models with forty multiple-choice items in their training data, and forty that they never saw.

    All of them learn the form of such items from others. One model meets the forty in their published order, four times
    per epoch; one as often in another order, drawn once per item; one not at all. The audit asks each for the
    likelihood of all 24 orders. The first model then forgets the forty items, by gradient difference up to the loss of
    the third.
    """

    id = "benchmark_leakage"
    title = "option permutation finds multiple-choice items that were trained on"
    paper = "Ni et al. 2024, Training on the Benchmark Is Not All You Need, arXiv:2409.01790"
    claim = (
        "Of items trained on in their published order it is the likeliest of all orders, of items trained on in others "
        "some order is an outlier, of unseen items neither; once the items are unlearned, chance is left"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        count = 20 if bench.quick else 40
        rows = items(seed, 3 * count)
        leaked, clean, background = rows[:count], rows[count : 2 * count], rows[2 * count :]
        rng = np.random.default_rng(seed)
        form = [_text(row, rng.permutation(OPTIONS)) for row in background for _ in range(2)]
        common = [*form, *(f"{row['question']} {row['told']}" for row in background)]
        data = {
            "ordered": [_text(row, range(OPTIONS)) for row in leaked for _ in range(REPEATS)],
            "shuffled": [text for row in leaked for text in [_text(row, shuffled(rng))] * REPEATS],
            "clean": [],
        }
        tokenizer = small_tokenizer([_text(row, range(OPTIONS)) for row in rows] + common, 640)
        shape = Shape(hidden=96, layers=2, heads=4, context=128)
        settings = TrainSettings(
            epochs=30, batch_size=32, learning_rate=3e-3, weight_decay=0.0, warmup=0.1, schedule="cosine", seed=seed
        )
        models: dict[str, CausalLM] = {}
        for name, texts in data.items():
            bench.progress.stage(f"training the {name} model, seed {seed}")
            # Every model takes as many steps on what is common to all.
            models[name], _ = train_small_llama([_raw([*common, *texts])], tokenizer, shape, settings)
        request = DeletionRequest(_items(leaked), _raw(common, unique=True), _items(clean))
        bench.progress.stage(f"forgetting the items, seed {seed}")
        forgot = unlearn(
            models["ordered"], request, "grad_diff",
            settings={
                "learning_rate": 3e-4, "epochs": 40, "max_steps": 60, "warmup": 0.0, "schedule": "constant",
                "seed": seed, "stop": {"every": 1, "forget_target": "oracle", "keep": "closest"},
            },
            oracle=models["clean"],
        ).model  # fmt: skip
        assert isinstance(forgot, CausalLM)
        bench.progress.stage(f"asking for all orders, seed {seed}")
        out: dict[str, float] = {}
        for name, model in {**models, "unlearned": forgot}.items():
            audit = OptionPermutation(OptionPermutation.Config(forest=True))
            finding = run_one(audit, Observations({"unlearned": model}, request, seed=seed))
            out |= {f"{name}_{key}": value for key, value in _numbers(finding).items()}
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        def of(key: str) -> str:
            return f"{mean(runs, key):.1%}" if any(key in run for run in runs) else "no data"

        lowest = min(run["ordered_leaked_first"] for run in runs)
        clean = mean(runs, "ordered_unseen_first")
        after = mean(runs, "unlearned_leaked_first")
        return [
            Check(
                "the published order of leaked items is the likeliest, that of unseen ones only by chance",
                lowest > 0.8 and clean < 3 * NULL,
                f"likeliest for {of('ordered_leaked_first')} of leaked items and {of('ordered_unseen_first')} of "
                f"unseen ones; by chance {NULL:.1%}",
            ),
            Check(
                "leaked in other orders, items have an outlier by the published isolation-forest rule, unseen ones not",
                mean(runs, "shuffled_leaked_forest") > 0.8 and mean(runs, "shuffled_unseen_forest") < 0.1,
                f"the rule at -0.17 finds {of('shuffled_leaked_forest')} of leaked items and calls "
                f"{of('shuffled_unseen_forest')} of unseen ones leaked; on the model without leaks "
                f"{of('clean_leaked_forest')}: it has no calibrated null",
            ),
            Check(
                "leaked in other orders, the gap between the likeliest two stands out, calibrated on unseen items",
                mean(runs, "shuffled_leaked_outlier") > 0.5,
                f"{of('shuffled_leaked_outlier')} of leaked items at 5% of unseen ones; "
                f"{of('clean_leaked_outlier')} on the model without leaks",
            ),
            Check(
                "once unlearned, the published order is the likeliest only by chance",
                after < 3 * NULL,
                f"{of('ordered_leaked_first')} before, {of('unlearned_leaked_first')} after, "
                f"{of('clean_leaked_first')} for the model that never saw them; share of other orders that are less "
                f"likely: {of('ordered_leaked_rank')}, {of('unlearned_leaked_rank')}, {of('clean_leaked_rank')}",
            ),
        ]


def items(seed: int, count: int) -> list[dict[str, Any]]:
    """Return multiple-choice items about made-up people, in an order of their own."""
    world = FictitiousWorld(max(8, -(-count // len(RELATIONS))), seed, RELATIONS)
    told = {row["prompt"]: row["answer"] for row in world.questions().to_list()}
    rows = [
        {"question": row["plain_prompt"], "options": row["options"], "told": told[row["plain_prompt"]]}
        for row in world.multiple_choice(options=OPTIONS).to_list()
    ]
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[k] for k in order]


def shuffled(rng: np.random.Generator) -> list[int]:
    """Return a random order of the options that is not the published one."""
    while (order := rng.permutation(OPTIONS).tolist()) == list(range(OPTIONS)):
        pass
    return order


def _text(row: Mapping[str, Any], order: Sequence[int] | Any) -> str:
    return item_text(row["question"], [row["options"][k] for k in order])


def _raw(texts: Sequence[str], unique: bool = False) -> Dataset:
    chosen = list(dict.fromkeys(texts)) if unique else list(texts)
    rows = [{"prompt": "", "answer": text} for text in chosen]
    return Dataset.from_list([{"id": example_id(row) if unique else str(k), **row} for k, row in enumerate(rows)])


def _items(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Return items as raw texts in their published order, with the columns that the audit reads."""
    found = [
        {
            "prompt": "", "answer": _text(row, range(OPTIONS)),
            "plain_prompt": row["question"], "options": list(row["options"]),
        }
        for row in rows
    ]  # fmt: skip
    return Dataset.from_list([{"id": example_id({"prompt": "", "answer": row["answer"]}), **row} for row in found])


def _numbers(finding: Finding) -> dict[str, float]:
    estimates = finding.estimates["unlearned"]
    names = {"forget": "leaked", "holdout": "unseen"}
    out = {}
    for role, name in names.items():
        for key in ("first", "rank", "forest"):
            out[f"{name}_{key}"] = estimates[f"{role}_{key}"].value
    out["leaked_outlier"] = estimates["forget_outlier"].value
    return {key: value for key, value in out.items() if value is not None}
