"""Concepts to look for in a model: from the groups of a request, or from a file in the published format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expunge.audits.examples import Pair
from expunge.audits.observations import Observations
from expunge.data.concept_vectors import ConceptRecord, read_concepts
from expunge.selections.localisation import Candidate
from expunge.tasks.feed_forward import Place

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

WHOLE = "the forget set"


@dataclass(frozen=True)
class Concept:
    """A concept and what is asked about it.

    Attributes:
        name: what it is called.
        target: (question, answer) pairs about it.
        unrelated: pairs about other things.
        texts: what its tokens are taken from.
        background: texts about other things.
        answers: model -> its greedy answers to the target and to the unrelated questions.
        places: where its vectors are, if that is known; otherwise they are searched for.
    """

    name: str
    target: tuple[Pair, ...]
    unrelated: tuple[Pair, ...]
    texts: tuple[str, ...]
    background: tuple[str, ...]
    answers: dict[str, tuple[list[str], list[str]]]
    places: tuple[Place, ...] = ()


def requested_concepts(seen: Observations, limit: int, unrelated: int, *, ask: bool = True) -> list[Concept]:
    """Make a concept of every group of the forget set, or one of the whole set where there are no groups.

    Args:
        seen: models and request; the retain set gives the unrelated questions and the background.
        limit: concepts at most, drawn by seed.
        unrelated: unrelated questions at most, drawn by seed, the same for every concept.
        ask: let every model answer the questions; otherwise the concepts have no answers.
    """
    groups = seen.groups("forget")
    members: dict[str, list[str]] = {}
    for identity in sorted(seen.rows("forget")):
        members.setdefault(groups.get(identity, WHOLE), []).append(identity)
    rng = np.random.default_rng(seen.seed)
    names = sorted(members)
    names = [names[k] for k in sorted(rng.permutation(len(names))[:limit])]
    kept = sorted(seen.examples.pairs("retain", "answer"))
    kept = [kept[k] for k in sorted(rng.permutation(len(kept))[:unrelated])]
    other = tuple(seen.examples.pairs("retain", "answer")[i][0] for i in kept)
    background = tuple(row["answer"] for _, row in sorted(seen.rows("retain").items()))
    asked = seen.models if ask else ()
    said = {m: (seen.generations(m, "forget"), seen.generations(m, "retain")) for m in asked}
    out = []
    for name in names:
        pairs = {i: found[0] for i, found in seen.examples.pairs("forget", "answer").items() if i in members[name]}
        if not pairs:
            continue
        answers = {
            model: ([about[i] for i in members[name] if i in about], [rest[i] for i in kept if i in rest])
            for model, (about, rest) in said.items()
        }
        texts = tuple(seen.rows("forget")[i]["answer"] for i in members[name])
        out.append(Concept(name, tuple(pairs[i] for i in sorted(pairs)), other, texts, background, answers))
    return out


def published_concepts(
    seen: Observations, path: Path, limit: int, unrelated: int, max_new_tokens: int
) -> list[Concept]:
    """Make concepts of a file in the published format; the gold answers are the original's own greedy ones."""
    out = []
    for record in read_concepts(path)[:limit]:
        other = record.unrelated[:unrelated]
        answers = {name: _answers(task, record.questions, other, max_new_tokens) for name, task in seen.models.items()}
        about, rest = answers["original"]
        out.append(
            Concept(
                name=record.name,
                target=_spoken(record.questions, about),
                unrelated=_spoken(other, rest),
                texts=tuple(filter(None, (record.name, *record.article.split("\n"), *about))),
                background=tuple(filter(None, rest)),
                answers=answers,
                places=tuple(Place(*vector) for vector in record.vectors),
            )
        )
    return out


def as_record(concept: Concept, candidates: Sequence[Candidate]) -> ConceptRecord:
    """Return a concept and its located vectors in the published format.

    Raises:
        ValueError: it has no vector, and the format has no way to say so.
    """
    if not candidates:
        raise ValueError(f"'{concept.name}' has no vector")
    extra = {
        "Sign": [c.sign for c in candidates],
        "Score": [round(c.score, 4) for c in candidates],
        "Null_p": [c.null_p for c in candidates],
        "Gold": [answer for _, answer in concept.target],
    }
    return ConceptRecord(
        name=concept.name,
        vectors=tuple(tuple(c.place) for c in candidates),  # type: ignore[misc]
        questions=tuple(str(prompt) for prompt, _ in concept.target),
        unrelated=tuple(str(prompt) for prompt, _ in concept.unrelated),
        article="\n".join(concept.texts),
        extra=extra,
    )


def _answers(task: CausalLM, about: Sequence[str], other: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
    texts = task.generate([*about, *other], [limit] * (len(about) + len(other)))
    return texts[: len(about)], texts[len(about) :]


def _spoken(questions: Sequence[str], answers: Sequence[str]) -> tuple[Pair, ...]:
    """Pair questions with answers; an empty answer teaches nothing about what is known and is left out."""
    return tuple((q, a) for q, a in zip(questions, answers, strict=True) if a.strip())
