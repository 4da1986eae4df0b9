"""Asks a model everything that open-unlearning's metrics are made of, and makes the task that our audits ask."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from expunge.benchmarks.open_unlearning_effects import Effect, layout_effects, strength_effects
from expunge.benchmarks.open_unlearning_metrics import Seen
from expunge.benchmarks.open_unlearning_text import (
    Template,
    TemplateEncoder,
    gradient_norms,
    parity_generations,
    parity_scores,
    parity_tokens,
)
from expunge.benchmarks.tofu_data import TofuSplit
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM

# Their name of an example set -> ours.
ROLES = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts", "holdout": "holdout"}
WITH_WRONG = ("forget", "retain", "ra", "wf")


def laid_out(task: CausalLM, template: Template) -> CausalLM:
    """Return the same weights, asked in the same words, with examples laid out as tokens without their slips."""
    other = copy.copy(task)
    other.encoder = TemplateEncoder(task.tokenizer, template, task.encoder.max_length)
    return other


def sets_of(split: TofuSplit, holdout: Dataset | None) -> dict[str, Dataset]:
    """Return every example set by our name, in the order of its file."""
    assert split.audit.retain is not None
    sets = {"forget": split.audit.forget, "retain": split.audit.retain, **split.knowledge}
    return sets if holdout is None else {**sets, "holdout": holdout}


def groups_of(sets: Mapping[str, Dataset]) -> dict[str, str]:
    """Return example id -> author, where every row of a set has one."""
    out: dict[str, str] = {}
    for rows in sets.values():
        if "group" in rows.column_names and all(rows["group"]):
            out |= dict(zip(rows["id"], map(str, rows["group"]), strict=True))
    return out


def observe(
    task: CausalLM, template: Template, sets: Mapping[str, Dataset], metrics: Sequence[str], progress: Progress
) -> Seen:
    """Score and generate what the metrics are made of, all of it laid out as open-unlearning does.

    Args:
        task: the model; it is not changed.
        template: how questions are put.
        sets: see ``sets_of``.
        metrics: their names; answers are generated for those only that read them.
        progress: hears which set is being answered.
    """
    pairs: list[tuple[str, str]] = []
    where: dict[str, dict[str, list[slice]]] = {"answer": {}, "paraphrased": {}, "wrong": {}}
    for short, role in ROLES.items():
        for row in sets[role].to_list() if role in sets else ():
            texts = {"answer": [row["answer"]]}
            if short in WITH_WRONG:
                texts |= {"paraphrased": [a] if (a := row.get("paraphrased_answer")) else [],
                          "wrong": list(row["perturbed_answers"])}  # fmt: skip
            for field, answers in texts.items():
                if answers:
                    where[field].setdefault(short, []).append(slice(len(pairs), len(pairs) + len(answers)))
                    pairs += [(row["prompt"], answer) for answer in answers]
    scores = parity_scores(task, template, pairs)
    found: dict[str, Any] = {
        field: {short: [scores[part] for part in parts] for short, parts in roles.items()}
        for field, roles in where.items()
    }
    single = {field: {s: [row[0] for row in rows] for s, rows in found[field].items()} for field in found}
    utility = "model_utility" in metrics
    asked = [s for s in WITH_WRONG if f"{s}_Q_A_ROUGE" in metrics or (utility and s != "forget")]
    said = {}
    for k, short in enumerate(asked):
        progress.step(k, len(asked), f"generating answers: {ROLES[short]}")
        rows = sets[ROLES[short]].to_list()
        said[short] = parity_generations(task, template, [(row["prompt"], row["answer"]) for row in rows])
    norms: dict[str, list[float]] = {}
    if "mia_gradnorm" in metrics:
        for side in ("forget", "holdout"):
            progress.step(len(norms), 2, f"gradients of the {side} set")
            rows = sets[side].to_list()
            laid = [parity_tokens(task.tokenizer, template, row["prompt"], row["answer"]) for row in rows]
            norms[side] = gradient_norms(task, laid)
    return Seen(single["answer"], single["paraphrased"], found["wrong"], said, norms)


def effects_of(
    task: CausalLM, template: Template, sets: Mapping[str, Dataset], seen: Seen, strength: bool
) -> list[Effect]:
    """Count what each slip touches: in the layout of all true answers and, where asked, in extraction strength."""
    pairs = [(row["prompt"], row["answer"]) for rows in sets.values() for row in rows.to_list()]
    found = layout_effects(task, template, pairs)
    return [*found, *strength_effects(seen.answers["forget"])] if strength else found
