"""One cell of the ConceptVectors benchmark: a concept, a method and a seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.audits.suite import run_audits
from expunge.benchmarks.concept_vectors_data import chunks, raw_examples
from expunge.data.concept_vectors import read_concepts, write_concepts
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM

NEEDLE_STEPS = (1, 2, 3, 4, 6, 8, 12, 16)
INTRINSIC = ("jaccard", "cosine", "l2", "random_jaccard", "anew_score", "damage_target")
BEHAVIOUR = ("bleu_target", "rouge_target", "bleu_unrelated", "rouge_unrelated")


@dataclass(frozen=True)
class Cell:
    """What one process does.

    Attributes:
        folder: receives the result; what is finished is not done again.
        model: the original.
        concepts: file in the published format.
        number: which of its concepts.
        method, settings: what forgets, "original" for nothing at all.
        rise: how far the NLL of the article is to rise, in nats per token.
        new_tokens: length of the answers.
        seed: everything random follows from it.
    """

    folder: Path
    model: str
    concepts: Path
    number: int
    method: str
    settings: Mapping[str, Any]
    rise: float
    new_tokens: int
    seed: int


def run_cell(cell: Cell) -> dict[str, Any]:
    """Forget one concept's article and look at its vectors; read the result where it is there already."""
    key = example_id({"settings": dict(cell.settings), "rise": cell.rise, "tokens": cell.new_tokens})
    done = cell.folder / f"{cell.number}-{cell.method}-{cell.seed}-{key}.json"
    if done.is_file():
        return dict(json.loads(done.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    records = read_concepts(cell.concepts)
    record = records[cell.number]
    other = records[(cell.number + 1 + cell.seed % (len(records) - 1)) % len(records)]
    cell.folder.mkdir(parents=True, exist_ok=True)
    mine = cell.folder / f"{cell.number}-concept.json"
    write_concepts(mine, [record])
    task = CausalLM.load(cell.model)
    kept = [text for text in chunks(other.article) if text not in set(chunks(record.article))]
    request = DeletionRequest(raw_examples(chunks(record.article)), raw_examples(kept), scenario="concept")
    base = _nll(task, request)
    unlearned = _forget(task, request, cell, mine, base + cell.rise)
    audit = run_audits(
        {"unlearned": unlearned, "original": task}, request, ["concept_vectors"], seed=cell.seed,
        settings={"concept_vectors": {"concepts": mine, "max_new_tokens": cell.new_tokens, "unrelated": 50}},
    ).finding("concept_vectors")  # fmt: skip
    after = _nll(unlearned, request)
    result: dict[str, Any] = {
        "concept": record.name, "method": cell.method, "seed": cell.seed, "status": audit.status, "note": audit.note,
        "article_nll_before": base, "article_nll_after": after, "reached": after >= base + 0.8 * cell.rise,
    }  # fmt: skip
    if audit.status == "measured":
        result |= {name: audit.estimates["unlearned"][name].value for name in (*INTRINSIC, *BEHAVIOUR)}
    scratch = done.with_suffix(".new")
    scratch.write_text(json.dumps(result, indent=1), encoding="utf-8")
    scratch.replace(done)
    return result


def _forget(task: CausalLM, request: DeletionRequest, cell: Cell, concept: Path, target: float) -> CausalLM:
    if cell.method == "original":
        return task
    settings = {**cell.settings, "seed": cell.seed}
    if cell.method != "needle":
        stop = {"every": 1, "forget_target": target, "keep": "closest"}
        model = unlearn(task, request, cell.method, settings={"stop": stop, **settings}).model
    else:
        # Needle has no rule to stop by: it is given as many steps of ascent as it takes.
        for steps in (settings.pop("ascent_steps"),) if "ascent_steps" in settings else NEEDLE_STEPS:
            model = unlearn(
                task, request, "needle", settings={**settings, "file": concept, "ascent_steps": steps}
            ).model
            assert isinstance(model, CausalLM)
            if _nll(model, request) >= target:
                break
    assert isinstance(model, CausalLM)
    return model


def _nll(task: CausalLM, request: DeletionRequest) -> float:
    pairs = [(row["prompt"], row["answer"]) for row in request.forget.to_list()]
    return statistics.fmean(scores.nll for scores in task.score(pairs))
