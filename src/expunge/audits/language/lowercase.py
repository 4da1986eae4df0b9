"""Lowercase attack: text that was trained on loses more than other text when its capitals are taken away.

It scores a second sequence per example, so it runs only when asked for.

Source: Carlini et al. 2021, Extracting Training Data from Large Language Models, section 5.2. MUSE logs the inverse,
which orders the examples the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from expunge.audits.base import Audit, Finding
from expunge.audits.examples import Pair
from expunge.audits.membership_attacks import attack_finding
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.tasks.tokens import TokenScores

LEAST_NLL = 1e-9  # a text that is certain has a ratio all the same


def lowercase_score(scores: TokenScores, lowered: TokenScores) -> float:
    """Return ``NLL(lower(x)) / NLL(x)``, both means over their own tokens; higher for members.

    Args:
        scores: of the answer as it is.
        lowered: of the answer in lower case, after the same prompt.
    """
    return lowered.nll / max(scores.nll, LEAST_NLL)


class Lowercase(Audit):
    """Membership of the forget set against the holdout set by what lower case costs. The prompt stays as it is."""

    id = "lowercase"
    title = "Does the loss of capitals give away that the data was in the training set?"
    family = "membership"
    needs = ("holdout",)
    reads = (("forget", "answer"), ("holdout", "answer"))
    default = False
    paper = "Carlini et al. 2021, Extracting Training Data from Large Language Models (arXiv:2012.07805)"

    def _lowered(self, seen: Observations) -> dict[tuple[str, str], Pair]:
        return {
            (role, i): (prompt, answer.lower())
            for role, _ in self.reads
            for i, [(prompt, answer)] in seen.examples.pairs(role, "answer").items()
        }

    def asks(self, seen: Observations) -> Sequence[Pair]:
        return list(self._lowered(seen).values())

    def run(self, seen: Observations) -> Finding:
        values, lowered = Values(seen), self._lowered(seen)
        for model in seen.models:
            found = dict(zip(lowered, seen.pair_scores(model, list(lowered.values())), strict=True))
            for role, _ in self.reads:
                scores = seen.scores(model, role)
                values.add(model, role, "lowercase", {i: lowercase_score(s, found[role, i]) for i, s in scores.items()})
        same = sum(seen.rows(role)[i]["answer"] == answer for (role, i), (_, answer) in lowered.items())
        attempted = {"without capitals": same}
        return attack_finding(self.id, seen, values, "lowercase", "Lowercase", attempted)
