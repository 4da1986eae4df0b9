"""Neighbour attack: text that was trained on is more likely than texts that differ from it in a few words.

The published attack asks a masked language model for the other words. Here they are drawn from the words of the request
or from the tokens of the model, or made by any function that is handed in, so nothing is downloaded.

It scores several sequences per example, so it runs only when asked for.

Source: Mattern et al. 2023, Membership Inference Attacks against Language Models via Neighbourhood Comparison.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Finding
from expunge.audits.examples import Pair
from expunge.audits.membership_attacks import attack_finding
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

Neighbours = Callable[[str, int, int], Sequence[str]]
WORD = re.compile(r"\w+")
ROLES = ("forget", "holdout")


def neighbour_score(scores: TokenScores, neighbours: Sequence[TokenScores]) -> float:
    """Return the mean NLL of the neighbours minus the NLL of the text, in nats per token; higher for members."""
    return float(np.mean([n.nll for n in neighbours])) - scores.nll


def substitute(text: str, words: Sequence[str], share: float, count: int, seed: int) -> list[str]:
    """Replace a share of the words of a text by other words, at least one of them, each time others.

    Args:
        text: any text.
        words: what to draw from, as often as they should come; ones of the same case are preferred.
        share: of the words to replace, in (0, 1].
        count: how many neighbours.
        seed: of the draws; the same text and seed give the same neighbours.

    Returns:
        The neighbours that differ from the text; none for a text without words, or where there is no other word.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    digest = hashlib.blake2b(f"{seed}|{text}".encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    titled = {True: [w for w in words if w[:1].isupper()], False: [w for w in words if not w[:1].isupper()]}
    out = []
    for _ in range(count if spans and words else 0):
        changed = text
        where = rng.choice(len(spans), max(1, round(share * len(spans))), replace=False)
        for k in sorted(where, reverse=True):
            begin, end = spans[k]
            pool = titled[text[begin].isupper()] or words
            drawn = (pool[n] for n in rng.integers(len(pool), size=8))
            other = next((word for word in drawn if word != text[begin:end]), None)
            if other is not None:
                changed = changed[:begin] + other + changed[end:]
        if changed != text:
            out.append(changed)
    return out


class Neighbour(Audit):
    """Membership of the forget set against the holdout set by the likelihood of perturbed texts.

    Args:
        config: the settings.
        neighbours: makes neighbours in another way: (text, how many, seed) -> texts.
    """

    id = "neighbour"
    title = "Is the data likelier than texts that differ from it in a few words?"
    family = "membership"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    default = False
    paper = "Mattern et al. 2023, Neighbourhood Comparison (arXiv:2305.18462)"

    class Config(AuditConfig):
        """Settings of the neighbour audit."""

        neighbours: int = Field(5, ge=1, description="perturbed texts per example")
        share: float = Field(0.2, gt=0, le=1, description="share of the words to replace, at least one")
        words: Literal["request", "tokens"] = Field(
            "request", description="where other words come from: the answers of the request, or the model's tokens"
        )

    def __init__(self, config: AuditConfig | None = None, neighbours: Neighbours | None = None):
        super().__init__(config)
        self._make = neighbours

    def _neighbours(self, seen: Observations) -> dict[tuple[str, str], list[Pair]]:
        make = self._make
        if make is None:
            words, share = self._words(seen), self.config.share

            def make(text: str, count: int, seed: int) -> Sequence[str]:
                return substitute(text, words, share, count, seed)

        return {
            (role, i): [(row[0][0], text) for text in made]
            for role in ROLES
            for i, row in seen.examples.pairs(role, "answer").items()
            if (made := make(row[0][1], self.config.neighbours, seen.seed))
        }

    def _words(self, seen: Observations) -> list[str]:
        if self.config.words == "tokens":
            tokenizer = seen.models["unlearned"].tokenizer
            special = set(tokenizer.all_special_ids)
            texts = [tokenizer.decode([k]).strip() for k in range(len(tokenizer)) if k not in special]
            return sorted({text for text in texts if WORD.fullmatch(text)})
        answers = [row["answer"] for role in seen.request.sets() for row in seen.rows(role).values()]
        return sorted(word for answer in answers for word in WORD.findall(answer))

    def asks(self, seen: Observations) -> Sequence[Pair]:
        return [pair for row in self._neighbours(seen).values() for pair in row]

    def run(self, seen: Observations) -> Finding:
        values, pairs = Values(seen), self._neighbours(seen)
        for model in seen.models:
            found = iter(seen.pair_scores(model, [pair for row in pairs.values() for pair in row]))
            near = {key: [next(found) for _ in row] for key, row in pairs.items()}
            for role in ROLES:
                scores = {i: s for i, s in seen.scores(model, role).items() if (role, i) in near}
                values.add(model, role, "neighbour", {i: neighbour_score(s, near[role, i]) for i, s in scores.items()})
        without = sum(len(seen.examples.pairs(role, "answer")) for role in ROLES) - len(pairs)
        attempted = {
            "neighbours": self.config.neighbours,
            "share": self.config.share,
            "words": "given" if self._make else self.config.words,
            "without neighbours": without,
        }
        return attack_finding(self.id, seen, values, "neighbour", "Neighbour", attempted)
