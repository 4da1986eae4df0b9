"""A small verifier, trained on the fly: is an answer to a question grounded in given knowledge?

It tells three cases apart: the knowledge is about something else; the knowledge fits and the answer is wrong; the
answer is right. The paper tunes a language model of 250 million weights for it and asks it with five wordings, whose
probabilities it sums. Here the five are five ways of cutting text into pieces (words, word pairs, stems, letters in
threes and fours); each gives a logistic regression over how much of question, knowledge and answer is shared, so the
verifier learns what agreement looks like and not which names agree. It is trained in a second and needs no model.

Source: Baek et al. 2023, Knowledge-Augmented Language Model Verification (arXiv:2310.12836).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
IRRELEVANT, WRONG, RIGHT = 0, 1, 2
LABELS = ("irrelevant", "wrong", "right")
WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Claim:
    """What is judged: an answer to a question in the light of some knowledge."""

    question: str
    knowledge: str
    answer: str


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _letters(size: int) -> Callable[[str], list[str]]:
    def cut(text: str) -> list[str]:
        spaced = [f"^{word}$" for word in _words(text)]
        return [word[k : k + size] for word in spaced for k in range(max(1, len(word) - size + 1))]

    return cut


VIEWS: Mapping[str, Callable[[str], list[str]]] = {
    "words": _words,
    "pairs": lambda text: [f"{a} {b}" for a, b in zip(["^", *_words(text)], _words(text), strict=False)],
    "stems": lambda text: [word[:5] for word in _words(text)],
    "threes": _letters(3),
    "fours": _letters(4),
}


def overlaps(claim: Claim, cut: Callable[[str], list[str]], weight: Callable[[str], float]) -> list[float]:
    """Return how much of the three texts of a claim is shared, weighted by how rare the pieces are.

    Args:
        claim: the claim.
        cut: cuts a text into pieces.
        weight: of a piece.

    Returns:
        Shares in [0, 1]: of the answer that is in the knowledge, of what the answer adds to the question that is in
        the knowledge, of what the knowledge adds to the question that is in the answer, of the question in the
        knowledge and in the answer; the rarest piece that the answer adds and the knowledge lacks, relative to the
        rarest of the claim; whether the answer adds a number that the knowledge lacks; and whether it adds nothing.
    """
    question, knowledge, answer = (set(cut(text)) for text in (claim.question, claim.knowledge, claim.answer))
    added, told = answer - question, knowledge - question

    def share(part: set[str], of: set[str]) -> float:
        total = sum(weight(piece) for piece in of)
        return sum(weight(piece) for piece in part & of) / total if total else 0.0

    rarest = max((weight(piece) for piece in question | knowledge | answer), default=1.0)
    stray = max((weight(piece) for piece in added - knowledge), default=0.0)
    numbers = {w for w in _words(claim.answer) if w.isdecimal()} - set(_words(claim.question + " " + claim.knowledge))
    return [
        share(knowledge, answer),
        share(knowledge, added),
        share(answer, told),
        share(knowledge, question),
        share(answer, question),
        stray / rarest,
        float(bool(numbers)),
        float(not added),
    ]


class Verifier:
    """Judges claims; see ``fit``."""

    def __init__(self, members: Mapping[str, tuple[Any, Mapping[str, float], float]]):
        self._members = members

    @classmethod
    def fit(cls, claims: Sequence[Claim], labels: Sequence[int]) -> Verifier:
        """Train a verifier.

        Args:
            claims: [n] with all three labels among them.
            labels: [n] 0 irrelevant, 1 wrong, 2 right.

        Raises:
            ValueError: a label does not occur.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        if set(labels) != {IRRELEVANT, WRONG, RIGHT}:
            raise ValueError("a verifier needs examples of all three labels")
        members = {}
        for name, cut in VIEWS.items():
            texts = [set(cut(text)) for claim in claims for text in (claim.question, claim.knowledge, claim.answer)]
            counts = Counter(piece for text in texts for piece in text)
            rare = math.log(len(texts) + 1)
            weights = {piece: rare - math.log(n) for piece, n in counts.items()}
            found = np.array([overlaps(claim, cut, _weigher(weights, rare)) for claim in claims])
            model = make_pipeline(
                PolynomialFeatures(2, include_bias=False),
                StandardScaler(),
                LogisticRegression(C=1.0, class_weight="balanced", max_iter=500),
            )
            members[name] = (model.fit(found, np.asarray(labels)), weights, rare)
        return cls(members)

    def views(self, claims: Sequence[Claim]) -> dict[str, Array]:
        """Return view -> [n, 3] probabilities of the labels."""
        out = {}
        for name, (model, weights, rare) in self._members.items():
            found = np.array([overlaps(claim, VIEWS[name], _weigher(weights, rare)) for claim in claims])
            out[name] = np.asarray(model.predict_proba(found)) if len(claims) else np.empty((0, 3))
        return out

    def probabilities(self, claims: Sequence[Claim]) -> Array:
        """Return [n, 3] probabilities of the labels, the views' summed and divided by their number."""
        return np.asarray(np.mean(list(self.views(claims).values()), axis=0))

    def judge(self, claims: Sequence[Claim]) -> NDArray[np.int64]:
        """Return [n] the likeliest label of each claim."""
        return np.asarray(self.probabilities(claims).argmax(1), dtype=np.int64)


def _weigher(weights: Mapping[str, float], rare: float) -> Callable[[str], float]:
    # A piece that training never met is as rare as can be.
    return lambda piece: max(weights.get(piece, rare), 1e-3)


@dataclass(frozen=True)
class Quality:
    """How well a verifier judges pairs that it was not trained on.

    Attributes:
        accuracy: share of right judgements.
        precision, recall, f1: of "right" answers.
        one_vs_rest: label -> share of right judgements on that label against the others.
        right: [n] per pair, whether the judgement was right.
    """

    accuracy: float
    precision: float
    recall: float
    f1: float
    one_vs_rest: Mapping[str, float]
    right: Sequence[bool]


def quality(judged: Sequence[int], labels: Sequence[int]) -> Quality:
    """Compare judgements with labels.

    Args:
        judged: [n].
        labels: [n], at least one.
    """
    said, truth = np.asarray(judged), np.asarray(labels)
    both = int(((said == RIGHT) & (truth == RIGHT)).sum())
    called, there = int((said == RIGHT).sum()), int((truth == RIGHT).sum())
    precision, recall = both / called if called else 0.0, both / there if there else 0.0
    return Quality(
        accuracy=float((said == truth).mean()),
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if both else 0.0,
        one_vs_rest={name: float(((said == k) == (truth == k)).mean()) for k, name in enumerate(LABELS)},
        right=(said == truth).tolist(),
    )
