"""MUSE: forgetting texts is one thing, hiding that they were ever seen another, and requests add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.benchmarks.muse_cell import Cell, run_cell
from expunge.benchmarks.muse_data import FOLDS, Corpus, write_corpus
from expunge.benchmarks.muse_prepare import halves
from expunge.benchmarks.muse_scores import question_prompt
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, train_small_llama
from expunge.training.settings import TrainSettings

METHODS = ("gradient_ascent", "grad_diff", "npo")
RELATIONS = ("birth_city", "profession", "pet", "instrument")
NEAR = 0.1  # of the way from the original's loss to the oracle's
PRIVATE = 20.0  # per cent of PrivLeak
WORSE = 5.0  # points of KnowMem
REPORTED = (
    "verbmem", "knowmem_f", "knowmem_r", "knowmem_r_empty", "privleak", "auc", "forget_nll", "oracle_nll", "steps",
)  # fmt: skip
SETTINGS: Mapping[str, Any] = {
    "learning_rate": 3e-4, "epochs": 60, "max_steps": 40, "warmup": 0.0, "schedule": "constant", "batch_size": 8,
    "stop": {"every": 2, "forget_target": "oracle", "keep": "closest"},
}  # fmt: skip


class MuseReproduction(Reproduction):
    """The criteria of MUSE on small language models that have learnt biographies and questions about them by heart.

    A quarter of the people each is to be forgotten, given to the methods to be kept, kept without being given, and
    never seen by any model. Methods are given biographies only. Each stops where the paper stops: after the first epoch
    at which it answers questions on the forgotten people no better than a model trained without them. Then the people
    are forgotten in four requests, one after the other, each up to that model's loss.
    """

    id = "muse"
    title = "verbatim memory, knowledge, privacy and utility, at once and over four requests"
    paper = "Shi et al. 2024, MUSE: Machine Unlearning Six-Way Evaluation, arXiv:2407.06460"
    claim = (
        "Methods that stop verbatim memory and knowledge leak that the texts were seen, unless they end near the "
        "retrained model; what is kept decays over requests"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        quarter = 8 if bench.quick else 24
        corpus = biographies(quarter, seed)
        home = bench.folder / ("quick" if bench.quick else "whole")
        folder = home / "corpus"
        write_corpus(corpus, folder, {"made_from": ["the fictitious world"], "seed": seed})
        epochs = 20 if bench.quick else 40
        original = _model(bench, home / "original", corpus, 1000 + seed, epochs, forget=True)
        oracles = [
            _model(bench, home / f"oracle-{k}", corpus, 2000 + 10 * k + seed, epochs, forget=False) for k in (1, 2)
        ]
        out: dict[str, float] = {}

        def cell(method: str, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
            bench.progress.stage(f"{method}, seed {seed}")
            where = home / "cells" / method
            return run_cell(Cell(where, str(folder), method, seed, model, oracles[0], settings, "knowmem", 5, True, 64))

        for name, model in (("original", original), ("retrain", oracles[1])):
            out |= _flat(name, cell(name, model, {}))
        for method in METHODS[1:2] if bench.quick else METHODS:
            found = cell(method, original, {**SETTINGS, "max_steps": 4} if bench.quick else SETTINGS)
            out |= _flat(method, found)
            for k, after in enumerate(found["sust"], 1):
                out |= _flat(f"{method}_request_{k}", after)
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        methods = [m for m in METHODS if f"{m}_verbmem" in runs[0]]
        forgot = [
            m for m in methods if all(r[f"{m}_knowmem_f"] <= r["retrain_knowmem_f"] + 10 for r in runs)
            and all(r[f"{m}_verbmem"] <= r["retrain_verbmem"] + 10 for r in runs)
        ]  # fmt: skip
        states = [(m, name) for m in methods for name in (m, f"{m}_request_{FOLDS}")]
        private = [
            (run, m, name) for run in runs for m, name in states
            if f"{name}_privleak" in run and abs(run[f"{name}_privleak"]) <= PRIVATE
        ]  # fmt: skip
        far = [name for run, _, name in private if not _near(run, name)]
        leaks = {m: column(runs, f"{m}_privleak") for m in methods}
        exposed = [m for m in methods if leaks[m] and min(map(abs, leaks[m])) > PRIVATE]
        falls = {
            m: mean(runs, f"{m}_request_{FOLDS}_knowmem_r") - mean(runs, f"{m}_request_1_knowmem_r") for m in methods
        }
        memory = {m: (mean(runs, f"{m}_verbmem"), mean(runs, f"{m}_knowmem_f")) for m in methods}
        said = "; ".join(f"{m}: VerbMem {verbatim:.0f}, KnowMem {known:.0f}" for m, (verbatim, known) in memory.items())
        everybody = {**leaks, "retrain": column(runs, "retrain_privleak")}
        private_said = "; ".join(f"{m} {min(v):+.0f} to {max(v):+.0f}" for m, v in everybody.items() if v)
        return [
            Check(
                "at the paper's checkpoint, verbatim memory and knowledge are gone with at least one method",
                bool(forgot),
                f"{said}; original {mean(runs, 'original_verbmem'):.0f} and {mean(runs, 'original_knowmem_f'):.0f}, "
                f"retrained {mean(runs, 'retrain_verbmem'):.0f} and {mean(runs, 'retrain_knowmem_f'):.0f}",
            ),
            Check(
                f"at that checkpoint most methods leak: PrivLeak beyond {PRIVATE:.0f} % in every seed",
                len(exposed) > len(methods) / 2,
                f"PrivLeak over seeds: {private_said}",
            ),
            Check(
                f"only models near the retrained one avoid leaking (PrivLeak within {PRIVATE:.0f} %)",
                bool(private) and not far,
                f"{len(private)} of {len(runs) * len(states)} models do not leak, {len(far)} of them far from the "
                f"retrained model in loss{': ' + ', '.join(sorted(set(far))) if far else ''}",
            ),
            Check(
                f"what is kept decays over requests: KnowMem falls by {WORSE:.0f} points or more with most methods",
                sum(fall <= -WORSE for fall in falls.values()) > len(methods) / 2,
                "from the first request to the fourth: " + ", ".join(f"{m} {fall:+.1f}" for m, fall in falls.items()),
            ),
        ]


def biographies(quarter: int, seed: int) -> Corpus:
    """Return the corpus: biographies of four times ``quarter`` people, and questions about two quarters of them."""
    world = FictitiousWorld(4 * quarter, seed, RELATIONS)
    parts = [world.people[k * quarter : (k + 1) * quarter] for k in range(4)]
    # Mentors are no relation here, so that nobody names anybody else and any quarter can be held out.
    retain1, retain2, forget, holdout = ([row["answer"] for row in world.biographies(part)] for part in parts)
    asked = {
        name: [(row["prompt"], row["value"]) for row in world.questions(part)]
        for name, part in (("retain", parts[1]), ("forget", parts[2]))
    }
    size = quarter // FOLDS
    return Corpus(
        forget=forget,
        retain1=retain1,
        retain2=retain2,
        holdout=holdout,
        verbmem=[halves(text) for text in forget],
        forget_qa=asked["forget"],
        retain_qa=asked["retain"],
        private=(forget, holdout),
        sust=[forget[k * size : (k + 1) * size] for k in range(FOLDS)],
    )


def _model(bench: Workbench, folder: Path, corpus: Corpus, seed: int, epochs: int, forget: bool) -> str:
    """Train a model on biographies and questions, or find it."""
    if (folder / "config.json").is_file():
        return str(folder)
    bench.progress.stage(f"training {folder.name}")
    everything = [*corpus.retain1, *corpus.retain2, *corpus.forget, *corpus.holdout]
    questions = [f"{question_prompt(q)}{a}" for q, a in [*corpus.retain_qa, *corpus.forget_qa]]
    tokenizer = small_tokenizer([*everything, *questions], 768)
    texts = [("", text) for text in [*corpus.retain1, *corpus.retain2, *(corpus.forget if forget else ())]]
    asked = [*corpus.retain_qa, *(corpus.forget_qa if forget else ())]
    pairs = [*texts, *((question_prompt(question), answer) for question, answer in asked)]
    examples = Dataset.from_list([{"id": str(k), "prompt": p, "answer": a} for k, (p, a) in enumerate(pairs)])
    settings = TrainSettings(
        epochs=epochs, batch_size=16, learning_rate=3e-3, weight_decay=0.0, warmup=0.1, schedule="cosine", seed=seed
    )
    model, _ = train_small_llama([examples], tokenizer, Shape(hidden=96, layers=2, heads=4, context=192), settings)
    assert isinstance(model, CausalLM)
    model.save(folder)
    return str(folder)


def _flat(name: str, numbers: Mapping[str, Any]) -> dict[str, float]:
    return {f"{name}_{key}": float(numbers[key]) for key in REPORTED if numbers.get(key) is not None}


def _near(run: Mapping[str, float], name: str) -> bool:
    """Whether a model's loss on the forgotten texts is near the retrained model's."""
    reference = run["retrain_forget_nll"]
    gap = abs(reference - run["original_forget_nll"])
    return abs(run[f"{name}_forget_nll"] - reference) <= NEAR * gap
