"""ReCaLL: a prefix of unknown text makes known text less likely, and unknown text not.

The prefix is made of holdout examples, which are then left out of the comparison. It scores a second, longer sequence
per example, so it runs only when asked for.

Source: Xie et al. 2024, ReCaLL: Membership Inference via Relative Conditional Log-Likelihoods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Finding
from expunge.audits.examples import Pair
from expunge.audits.membership_attacks import attack_finding
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.encoding import Prompt

LEAST_NLL = 1e-9
SEPARATOR = "\n\n"
ROLES = ("forget", "holdout")


def recall_score(alone: NDArray[np.float64], conditional: NDArray[np.float64]) -> float:
    """Return ``LL(x | prefix) / LL(x)`` over the tokens that both have; higher for members.

    Args:
        alone: [n] log-probabilities of the tokens of x.
        conditional: [m] the same after the prefix; raw text has its first token scored only here, so the last
            ``min(n, m)`` tokens of both are compared.
    """
    n = min(len(alone), len(conditional))
    if n == 0:
        return float("nan")
    return float(conditional[-n:].mean()) / min(float(alone[-n:].mean()), -LEAST_NLL)


class Recall(Audit):
    """Membership of the forget set against the holdout set by the ratio of conditional to plain log-likelihood."""

    id = "recall"
    title = "Does a prefix of unseen text give away that the data was in the training set?"
    family = "membership"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    default = False
    paper = "Xie et al. 2024, ReCaLL (arXiv:2406.15968)"

    class Config(AuditConfig):
        """Settings of the ReCaLL audit."""

        shots: int = Field(
            7, ge=1, description="holdout examples in the prefix, at most a quarter of the set and what fits"
        )

    def _prefix(self, seen: Observations) -> list[str]:
        """Return the ids of the prefix: drawn by seed, as many as fit beside the longest example in every model."""
        pairs = {i: row[0] for i, row in seen.examples.pairs("holdout", "answer").items()}
        order = sorted(pairs, key=lambda i: hashlib.blake2b(f"{seen.seed}|{i}".encode()).digest())
        chosen = order[: min(self.config.shots, len(order) // 4)]
        while chosen and not self._fits(seen, chosen):
            chosen.pop()
        return chosen

    def _fits(self, seen: Observations, prefix: Sequence[str]) -> bool:
        asked = list(self._conditional(seen, prefix).values())
        for model in seen.models.values():
            limit = model.encoder.max_length
            if limit is None:
                continue
            prompts, answers = [p for p, _ in asked], [a for _, a in asked]
            if max(map(sum, model.encode_lengths(prompts, answers))) >= limit:  # the end of sequence needs a place too
                return False
        return True

    def _conditional(self, seen: Observations, prefix: Sequence[str]) -> dict[tuple[str, str], Pair]:
        holdout = {i: row[0] for i, row in seen.examples.pairs("holdout", "answer").items()}
        text = "".join(_plain(*holdout[i]) + SEPARATOR for i in prefix)
        return {
            (role, i): (prefixed(text, row[0][0]), row[0][1])
            for role in ROLES
            for i, row in seen.examples.pairs(role, "answer").items()
            if not (role == "holdout" and i in prefix)
        }

    def asks(self, seen: Observations) -> Sequence[Pair]:
        prefix = self._prefix(seen)
        return list(self._conditional(seen, prefix).values()) if prefix else ()

    def run(self, seen: Observations) -> Finding:
        prefix = self._prefix(seen)
        if not prefix:
            why = "no prefix can be made: fewer than 4 holdout examples, or none that fits beside the longest example"
            return Finding(self.id, "no data", note=why)
        values, conditional = Values(seen), self._conditional(seen, prefix)
        for model in seen.models:
            found = dict(zip(conditional, seen.pair_scores(model, list(conditional.values())), strict=True))
            for role in ROLES:
                scores = {i: s for i, s in seen.scores(model, role).items() if (role, i) in found}
                recalled: Mapping[str, float] = {
                    i: recall_score(s.log_prob[s.content], found[role, i].log_prob[found[role, i].content])
                    for i, s in scores.items()
                    if len(s) > s.ends_with_eos
                }
                values.add(model, role, "recall", recalled)
        return attack_finding(self.id, seen, values, "recall", "ReCaLL", {"prefix examples": len(prefix)})


def prefixed(text: str, prompt: Prompt) -> Prompt:
    """Put a text in front of a prompt; in a chat, in front of the first user turn."""
    if isinstance(prompt, str):
        return text + prompt
    turns = [dict(turn) for turn in prompt]
    first = next((k for k, turn in enumerate(turns) if turn["role"] == "user"), 0)
    turns[first]["content"] = text + turns[first]["content"]
    return turns


def _plain(prompt: Prompt, answer: str) -> str:
    if isinstance(prompt, str):
        return f"{prompt} {answer}".strip()
    return "\n".join([*(turn["content"] for turn in prompt), answer])
