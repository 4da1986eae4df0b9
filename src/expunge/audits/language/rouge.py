"""ROUGE-L between the greedy answer and the true one.

Per-example statistics for the verdict: ``rouge_recall`` on the forget and the retain set: what the model says, beside
what it finds likely.

An empty generation says nothing about what a model knows, so on the forget and holdout sets it is left out of the
mean and counted; on the retain set it counts as 0, because there it is damage. For the verdict an oracle's empty
answers count as 0 as well: some retrained models meet an unknown name with a full stop, and that is what never having
known sounds like.

Source: Lin 2004, ROUGE; recall as in TOFU, F1 as in MUSE.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Literal

from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar
from expunge.audits.intervals import SHARE
from expunge.audits.observations import Observations
from expunge.audits.values import Values

ROLES = ("forget", "retain", "holdout")
Words = Literal["latin", "plain", "unicode"]


@dataclass(frozen=True)
class RougeL:
    """Longest common subsequence of words, as shares: of the reference (recall), and F1 with the prediction's share."""

    recall: float
    f1: float


class _UnicodeWords:
    """Words of any script; scripts without spaces give one word per character."""

    pattern = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+")

    def tokenize(self, text: str) -> list[str]:
        return self.pattern.findall(text.lower())


class _Remembering:
    """Splits each text once: the true answers come again for every model, and stemming is most of the work."""

    def __init__(self, tokenizer: Any):
        self.tokenize = lru_cache(maxsize=1 << 14)(tokenizer.tokenize)


@cache
def _scorer(words: Words) -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    inner = _UnicodeWords() if words == "unicode" else DefaultTokenizer(use_stemmer=words == "latin")
    return RougeScorer(["rougeL"], tokenizer=_Remembering(inner))


def count_words(text: str, words: Words = "latin") -> int:
    """Return how many words ROUGE sees in a text; the "latin" rule sees letters a to z and digits only."""
    return len(_scorer(words)._tokenizer.tokenize(text))


def rouge_l(prediction: str, reference: str, words: Words = "latin") -> RougeL:
    """Compare a prediction with a reference.

    Args:
        prediction: what the model said.
        reference: the true answer.
        words: "latin" is the published rule of the rouge-score package, with Porter stemming of words over three
            letters; "plain" is the same without stemming, as in MUSE; "unicode" counts words of every script and does
            not stem.

    Returns:
        Recall and F1 in [0, 1]; both 0 where nothing is shared.
    """
    score = _scorer(words).score(target=reference, prediction=prediction)["rougeL"]
    return RougeL(float(score.recall), float(score.fmeasure))


def is_empty(generation: str) -> bool:
    """Whether a generation holds no letter or digit of any script."""
    return not any(character.isalnum() for character in generation)


class Rouge(Audit):
    """Mean ROUGE-L recall and F1 of greedy answers, per example set, and how many generations were empty."""

    id = "rouge"
    title = "Does the model still say the answers?"
    generates = ROLES
    paper = "Lin 2004, ROUGE; Maini et al. 2024, TOFU (arXiv:2401.06121)"

    class Config(AuditConfig):
        """Settings of the ROUGE audit."""

        words: Words = Field(
            "latin",
            description="what a word is: 'latin' as published (a-z, 0-9, stemmed), 'plain' the same unstemmed, "
            "'unicode' for any script",
        )

    def run(self, seen: Observations) -> Finding:
        values, tested = Values(seen), Values(seen)
        roles = [role for role in ROLES if seen.rows(role)]
        empty: dict[tuple[str, str], list[str]] = {}
        unseen = 0
        for model in seen.models:
            for role in roles:
                texts = seen.generations(model, role)
                gold = {i: seen.rows(role)[i]["answer"] for i in texts}
                readable = [i for i in texts if count_words(gold[i], self.config.words)]
                unseen += (len(texts) - len(readable)) * (model == "unlearned")
                empty[model, role] = [i for i in readable if is_empty(texts[i])]
                counted = [i for i in readable if role == "retain" or not is_empty(texts[i])]
                scored = {i: rouge_l(texts[i], gold[i], self.config.words) for i in counted}
                recall = {i: s.recall for i, s in scored.items()}
                values.add(model, role, "rouge_recall", recall)
                silence = dict.fromkeys(empty[model, role], 0.0) if model.startswith("oracle") else {}
                tested.add(model, role, "rouge_recall", silence | recall)
                values.add(model, role, "rouge_f1", {i: s.f1 for i, s in scored.items()})
        if not any(seen.generations("unlearned", role) for role in roles):
            return Finding(self.id, "no data", note="no example has a prompt to continue")
        return Finding(
            self.id,
            scalars=[scalar for role in roles for scalar in _scalars(role)],
            estimates={
                model: {
                    name: estimate
                    for role in roles
                    for name, estimate in self._estimates(values, model, role, empty[model, role]).items()
                }
                for model in seen.models
            },
            per_example=values.per_example(),
            evidence=[
                *tested.evidence("rouge_recall", "forget", "high"),
                *tested.evidence("rouge_recall", "retain", "high"),
            ],
            attempted={"decoding": "greedy", "prompts": {r: len(seen.generations("unlearned", r)) for r in roles}},
            note=_note(empty, unseen),
        )

    def _estimates(self, values: Values, model: str, role: str, empty: Sequence[str]) -> dict[str, Estimate]:
        recall, f1 = (values.mean(model, role, name, SHARE) for name in ("rouge_recall", "rouge_f1"))
        if recall.value is None and empty:
            recall = f1 = Estimate(None, note="every generation is empty, which says nothing about knowledge")
        scored = len(values.get(model, role, "rouge_recall"))
        asked = scored if role == "retain" else scored + len(empty)
        return {
            f"{role}_rouge_recall": recall,
            f"{role}_rouge_f1": f1,
            f"{role}_empty_generations": Estimate(float(len(empty)), n=asked),
        }


def _scalars(role: str) -> list[Scalar]:
    knowing: Literal["high", "none"] = "high" if role == "forget" else "none"
    return [
        Scalar(f"{role}_rouge_recall", f"ROUGE-L recall, {role}", "share of the answer", knowing),
        Scalar(f"{role}_rouge_f1", f"ROUGE-L F1, {role}", "F1", knowing),
        Scalar(f"{role}_empty_generations", f"Empty generations, {role}", "generations", digits=0),
    ]


def _note(empty: dict[tuple[str, str], list[str]], unseen: int) -> str:
    parts = [f"{len(ids)} empty generations of {model} on {role}" for (model, role), ids in empty.items() if ids]
    if unseen:
        parts.append(f"{unseen} answers hold no word that ROUGE counts (set words=unicode) and were left out")
    return "; ".join(parts)
