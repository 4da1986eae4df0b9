"""The shape of every audit that asks the same questions in other words: prompt transforms and what answers score.

A transform makes a prompt of a case: a question, its answer, and what may be said around it. All prompts of all
transforms are scored in the shared pass, each distinct one once per model.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from expunge.audits.base import Audit
from expunge.audits.examples import Pair, asked_as, question_of
from expunge.audits.names import name_spans
from expunge.audits.observations import Observations
from expunge.tasks.encoding import Prompt
from expunge.tasks.tokens import TokenScores

Texts = tuple[str, str]


@dataclass(frozen=True)
class Case:
    """One example and what may be said around its question.

    Attributes:
        identity, role: of the example.
        prompt: as the request has it.
        question: its text.
        answer: what a model that knows says.
        name: whom or what the question is about; "" if that was not found.
        row: the whole example.
        related: (question, answer) of other examples of its group.
        others: (question, answer) of examples that are no secret, about something else.
    """

    identity: str
    role: str
    prompt: Prompt
    question: str
    answer: str
    name: str
    row: Mapping[str, Any]
    related: Sequence[Texts] = ()
    others: Sequence[Texts] = ()

    def ask(self, text: str) -> Pair:
        """Return the example with other words for its question."""
        return asked_as(self.prompt, text), self.answer

    def gives_away(self, text: str) -> bool:
        """Whether a text holds the answer, or the value that the answer is about."""
        secrets = [self.answer, str(self.row.get("value") or self.answer)]
        return any(secret.strip(" .").lower() in text.lower() for secret in secrets)


@dataclass(frozen=True)
class Transform:
    """A way to ask.

    Attributes:
        name: identifier.
        title: in words.
        make: returns the (prompt, answer) to score, or None where the case lacks what it takes.
    """

    name: str
    title: str
    make: Callable[[Case], Pair | None]


Probes = Mapping[tuple[str, str], Mapping[str, Pair]]


def cases_of(seen: Observations, role: str, shots: int = 3) -> dict[str, Case]:
    """Return the cases of an example set; raw text, which asks nothing, gives none.

    Args:
        seen: gives the examples.
        role: which of them.
        shots: how many related and other examples a case may use.
    """
    answers = {i: found[0][1] for i, found in seen.examples.pairs(role, "answer").items()}
    prompts = {i: prompt for i, prompt in seen.examples.prompts(role).items() if i in answers}
    questions = {i: question_of(prompt) for i, prompt in prompts.items()}
    groups = seen.groups(role)
    spans = name_spans(questions, groups)
    members: dict[str, list[str]] = {}
    for i in sorted(questions):
        members.setdefault(groups.get(i, i), []).append(i)
    others = _others(seen, role, shots)
    made = {}
    for i, question in questions.items():
        related = [j for j in members[groups.get(i, i)] if j != i][:shots]
        made[i] = Case(
            identity=i,
            role=role,
            prompt=prompts[i],
            question=question,
            answer=answers[i],
            name=question[slice(*spans[i])] if i in spans else "",
            row=seen.rows(role)[i],
            related=[(questions[j], answers[j]) for j in related],
            others=others,
        )
    return made


def _others(seen: Observations, role: str, shots: int) -> list[Texts]:
    """Return examples that are no secret, drawn by seed; the same ones for every case."""
    if role == "retain":
        return []
    pairs = {i: found[0] for i, found in seen.examples.pairs("retain", "answer").items()}
    rng = np.random.default_rng(seen.seed)
    drawn = [sorted(pairs)[k] for k in rng.permutation(len(pairs))[:shots]]
    return [(question_of(pairs[i][0]), pairs[i][1]) for i in drawn if pairs[i][0]]


def probes_of(cases: Mapping[str, Mapping[str, Case]], transforms: Sequence[Transform]) -> Probes:
    """Return (role, transform) -> example id -> (prompt, answer)."""
    return {
        (role, t.name): {i: pair for i, case in found.items() if (pair := t.make(case)) is not None}
        for role, found in cases.items()
        for t in transforms
    }


def measure(seen: Observations, model: str, probes: Probes) -> dict[tuple[str, str], dict[str, TokenScores]]:
    """Score every probe under a model.

    Raises:
        BrokenScores: some scores are NaN or infinite.
    """
    flat = [(key, i, pair) for key, pairs in probes.items() for i, pair in pairs.items()]
    out: dict[tuple[str, str], dict[str, TokenScores]] = {key: {} for key in probes}
    for (key, i, _), scores in zip(flat, seen.pair_scores(model, [pair for *_, pair in flat]), strict=True):
        out[key][i] = scores
    return out


def everywhere(probes: Probes, transforms: Sequence[Transform], roles: Sequence[str]) -> list[str]:
    """Return the transforms that could be made of every case of all roles: only these are comparable between cases."""
    full = {role: max((len(probes[role, t.name]) for t in transforms), default=0) for role in roles}
    return [t.name for t in transforms if all(0 < full[role] == len(probes[role, t.name]) for role in roles)]


class Prober(Audit):
    """An audit that asks in other words.

    Class attributes:
        roles: which example sets are asked.
    """

    family = "adversarial"
    roles: ClassVar[tuple[str, ...]] = ("forget", "holdout")

    @abstractmethod
    def transforms(self, seen: Observations) -> Sequence[Transform]:
        """Return the ways to ask."""

    def probes(self, seen: Observations) -> Probes:
        """Return every prompt of the audit."""
        cases = {role: found for role in self.roles if (found := cases_of(seen, role))}
        return probes_of(cases, self.transforms(seen))

    def asks(self, seen: Observations) -> Sequence[Pair]:
        return [pair for pairs in self.probes(seen).values() for pair in pairs.values()]
