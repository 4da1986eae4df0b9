"""The metrics of open-unlearning's MUSE suite, in its definitions and in ours, and what follows from either.

Both sides come in the layout of ``MUSE_EVAL.json``, so that every question is put to both in the same way. What theirs
does otherwise: words are stemmed before ROUGE; what a model recites in 128 tokens is compared with the whole true
text; Min-K, extraction strength and exact memorisation leave out the last label although nothing was appended; PrivLeak
takes an AUC of 0.5 where no retained model is given.

Source: locuslab/open-unlearning (MIT), ``configs/eval/muse_metrics/`` and ``src/evals/metrics/`` at d3d7cf9; Shi et al.
2024, MUSE (arXiv:2407.06460).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.audits.base import Estimate
from expunge.audits.intervals import SHARE, mean_interval
from expunge.audits.language.exact_memorization import exact_memorization
from expunge.audits.language.extraction_strength import extraction_strength
from expunge.audits.language.membership import loss_score, min_k_plus_plus_score, min_k_score, zlib_score
from expunge.audits.roc import auc_interval
from expunge.benchmarks.muse_data import Corpus
from expunge.benchmarks.muse_scores import ANSWER_TOKENS, STOPS, VERBATIM_TOKENS, knowledge, verbatim
from expunge.benchmarks.open_unlearning_metrics import (
    ATTACKS,
    K,
    Metric,
    Seen,
    against_reference,
    attacks,
    derived,
    memorised,
    per_example,
    rouge,
    told_apart,
)
from expunge.benchmarks.open_unlearning_text import (
    Template,
    continuations,
    gradient_norms,
    parity_generations,
    running_tokens,
    score_tokens,
)
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import TextEncoder
from expunge.tasks.tokens import TokenScores

RECITED = ("extraction_strength", "exact_memorization")
ANSWERED = ("forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE")
AVERAGES = (*ANSWERED, *RECITED)
TOLD = (*ATTACKS, "mia_reference", "mia_gradnorm")
# Everything that is recomputed.
MUSE_KNOWN = (*ANSWERED, "privleak", *RECITED, *TOLD)
Metrics = Mapping[str, Metric]


@dataclass(frozen=True)
class Ours:
    """What a model was seen to do in our layout: scores, gradients, and ROUGE of what it said."""

    seen: Seen
    said: Metrics


def _reads(metrics: Sequence[str]) -> tuple[bool, bool, bool]:
    """Whether texts to recite are scored, texts of both kinds are, and gradients are taken."""
    return (
        any(name in metrics for name in RECITED),
        any(name in metrics for name in (*TOLD, "privleak")),
        "mia_gradnorm" in metrics,
    )


def observe_theirs(
    task: CausalLM, template: Template, corpus: Corpus, metrics: Sequence[str], progress: Progress
) -> Seen:
    """Score and generate what the metrics are made of, laid out as open-unlearning does.

    Args:
        task: the model; it is not changed.
        template: how questions are put; running text has none.
        corpus: MUSE's files.
        metrics: their names.
        progress: hears what is being asked.
    """
    recite, tell, norm = _reads(metrics)
    said, tokenizer = {}, task.tokenizer
    for k, name in enumerate(ANSWERED):
        if name not in metrics:
            continue
        progress.step(k, len(ANSWERED), f"generating for {name}")
        if name == "forget_verbmem_ROUGE":
            said[name] = continuations(task, corpus.verbmem, VERBATIM_TOKENS, 8)
        else:
            asked, shots = _questions(corpus, name)
            said[name] = parity_generations(task, template, asked, ANSWER_TOKENS, 16, shots, STOPS)
    answers = {}
    if recite:
        answers["verbmem"] = score_tokens(task, [running_tokens(tokenizer, gt, begun) for begun, gt in corpus.verbmem])
    sides = zip(("forget", "holdout"), corpus.private, strict=True)
    laid = {side: [running_tokens(tokenizer, text) for text in texts] for side, texts in sides if tell}
    answers |= {side: score_tokens(task, rows) for side, rows in laid.items()}
    norms = {side: gradient_norms(task, rows) for side, rows in laid.items()} if norm else {}
    return Seen(answers, said=said, norms=norms)


def observe_ours(task: CausalLM, corpus: Corpus, metrics: Sequence[str], progress: Progress) -> Ours:
    """Ask the same in our layout; see ``observe_theirs``."""
    recite, tell, norm = _reads(metrics)
    # MUSE's questions and texts are text, also for a model that has a chat template.
    task = copy.copy(task)
    task.encoder = TextEncoder(task.tokenizer, chat="never", max_length=task.encoder.max_length)
    said = {}
    for k, name in enumerate(ANSWERED):
        if name in metrics:
            progress.step(k, len(ANSWERED), f"generating for {name}")
            asked, shots = _questions(corpus, name)
            mine = verbatim(task, asked) if name == "forget_verbmem_ROUGE" else knowledge(task, asked, shots)
            said[name] = _average(dict(enumerate(mine.each)))
    pairs = {"verbmem": list(corpus.verbmem)} if recite else {}
    for side, texts in zip(("forget", "holdout"), corpus.private, strict=True):
        pairs |= {side: [("", text) for text in texts]} if tell else {}
    answers = {name: task.score(rows) for name, rows in pairs.items()}
    norms = {side: task.gradient_norms(pairs[side]).tolist() for side in ("forget", "holdout")} if norm else {}
    return Ours(Seen(answers, norms=norms), said)


def _questions(corpus: Corpus, name: str) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
    return {
        "forget_knowmem_ROUGE": (corpus.forget_qa, corpus.forget_icl),
        "retain_knowmem_ROUGE": (corpus.retain_qa, corpus.retain_icl),
        "forget_verbmem_ROUGE": (corpus.verbmem, ()),
    }[name]


def their_metrics(
    seen: Seen, retained: Mapping[str, Mapping[str, Any]] | None = None, reference: Seen | None = None
) -> dict[str, Metric]:
    """Return every metric that what was seen allows, as ``MUSE_EVAL.json`` holds it; see ``tofu_metrics``."""
    out = {name: rouge(said, "f1") for name, said in seen.said.items()}
    if "verbmem" in seen.answers:
        out |= memorised(seen.answers["verbmem"])
    out |= attacks(seen, reference)
    return out | derived(out, retained)


def our_metrics(ours: Ours, reference: Ours | None = None) -> dict[str, Metric]:
    """Return the same metrics by our definitions, in the same layout, but PrivLeak, which is an estimate.

    Args:
        ours: of the model.
        reference: of the model that was trained without the forget set, for ``mia_reference``.
    """
    seen, out = ours.seen, dict(ours.said)
    if (texts := seen.answers.get("verbmem")) is not None:
        out["extraction_strength"] = _average(_known(texts, extraction_strength))
        out["exact_memorization"] = _average(_known(texts, exact_memorization))
    if "holdout" not in seen.answers:
        return out
    sides = [seen.answers[side] for side in ("forget", "holdout")]
    scores: dict[str, Callable[[TokenScores], float]] = {
        "mia_loss": loss_score, "mia_zlib": zlib_score, "mia_min_k": lambda s: min_k_score(s, K),
        "mia_min_k_plus_plus": lambda s: min_k_plus_plus_score(s, K),
    }  # fmt: skip
    for name, score in scores.items():
        out[name] = told_apart(*([-value for value in _known(side, score).values()] for side in sides))
    if seen.norms:
        out["mia_gradnorm"] = told_apart(seen.norms["forget"], seen.norms["holdout"])
    if reference is not None:
        out["mia_reference"] = against_reference(seen, reference.seen)
    return out


def _known(scored: Sequence[TokenScores | None], value: Callable[[TokenScores], float]) -> dict[int, float]:
    found = {k: value(s) for k, s in enumerate(scored) if s is not None}
    return {k: v for k, v in found.items() if not math.isnan(v)}


def _average(values: Mapping[int, float]) -> Metric:
    mean = float(np.mean(list(values.values()))) if values else float("nan")
    return {"agg_value": mean, "value_by_index": {str(k): {"score": v} for k, v in values.items()}}


def estimate(name: str, metric: Metric) -> Estimate:
    """Return a metric of either side with its interval."""
    if name in AVERAGES:
        values = list(per_example(name, metric).values())
        whole = np.isfinite(values).all()
        return mean_interval(values, bounds=SHARE) if whole else Estimate(None, note="a value is no number")
    both = [[-entry["score"] for entry in metric[side]["value_by_index"].values()] for side in ("forget", "holdout")]
    if not all(both) or not np.isfinite(np.concatenate(both)).all():
        return Estimate(None, note="a text has no score")
    return auc_interval(both[0], both[1])
