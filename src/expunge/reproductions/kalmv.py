"""KALMV: a verifier of knowledge and answer filters out what is wrong, and its verdicts say what to do again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expunge.audits.verification import IRRELEVANT, RIGHT, VIEWS, WRONG, Claim, Verifier, quality
from expunge.data.fictitious import FictitiousWorld
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean

CORRUPTED = 0.3  # how often the retriever fetches something else, and the generator says something else
ROUNDS = 3


class KALMVReproduction(Reproduction):
    """A corrupted retriever and a corrupted generator over facts about made-up people, watched by a verifier.

    A retriever fetches the fact that answers a question, or in three of ten cases a fact about somebody else. A
    generator says what the fetched fact says, in one of two wordings, or in three of ten cases another value of the
    same kind. The verifier is trained on claims about some of the people and judges those about the others. Only
    answers judged right are kept; where the knowledge is judged irrelevant the retriever tries its next page, and where
    the answer is judged wrong the generator tries again. The paper's five wordings are five views here.
    """

    id = "kalmv"
    title = "a verifier of knowledge and answer filters and repairs answers"
    paper = "Baek et al. 2023, Knowledge-Augmented Language Model Verification, arXiv:2310.12836"
    claim = (
        "Answers that a small verifier lets pass are more often right, its five views together judge at least as well "
        "as one alone, and fetching or answering again as it says leaves more right answers"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        people = 24 if bench.quick else 80
        world = FictitiousWorld(people, seed)
        half = people // 2
        bench.progress.stage(f"a verifier of {half} people, seed {seed}")
        shop = _Shop(world, seed)
        facts = {row["id"]: row for row in world.questions(world.people[:half]).to_list()}
        claims, labels = [], []
        for identity in facts:
            for attempt in range(4):
                said = shop.answer(facts[identity], attempt, attempt)
                claims.append(said.claim)
                labels.append(said.label)
        verifier = Verifier.fit(claims, labels)
        asked = world.questions(world.people[half:]).to_list()
        first = [shop.answer(row, 0, 0) for row in asked]
        found = quality(verifier.judge([a.claim for a in first]).tolist(), [a.label for a in first])
        views = verifier.views([a.claim for a in first])
        truth = np.array([a.label for a in first])
        singles = {name: float((p.argmax(1) == truth).mean()) for name, p in views.items()}
        out = {
            "verifier_accuracy": found.accuracy,
            "verifier_precision_right": found.precision,
            "verifier_recall_right": found.recall,
            "verifier_f1_right": found.f1,
            **{f"verifier_accuracy_{name}": value for name, value in found.one_vs_rest.items()},
            "mean_single_view_accuracy": float(np.mean(list(singles.values()))),
            **{f"view_accuracy_{name}": singles[name] for name in VIEWS},
        }
        return out | _rectify(shop, verifier, asked)

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        gains = [b - a for a, b in zip(column(runs, "raw_accuracy"), column(runs, "filtered_accuracy_0"), strict=True)]
        views = [
            a - b
            for a, b in zip(column(runs, "verifier_accuracy"), column(runs, "mean_single_view_accuracy"), strict=True)
        ]
        more = [b - a for a, b in zip(column(runs, "solved_0"), column(runs, "solved_1"), strict=True)]
        return [
            Check(
                "answers that pass the verifier are right more often than answers as they come",
                min(gains) > 0,
                f"{mean(runs, 'raw_accuracy'):.1%} of all, {mean(runs, 'filtered_accuracy_0'):.1%} of those that pass, "
                f"which are {mean(runs, 'coverage_0'):.1%}",
            ),
            Check(
                "the views together judge at least as well as one alone does on average",
                min(views) >= 0,
                f"{mean(runs, 'verifier_accuracy'):.1%} together, {mean(runs, 'mean_single_view_accuracy'):.1%} alone",
            ),
            Check(
                "a round of fetching and answering again as the verifier says leaves more questions answered rightly",
                min(more) > 0,
                f"answers that pass and are right: {mean(runs, 'solved_0'):.1%} of all questions before, "
                f"{mean(runs, 'solved_1'):.1%} after one round, {mean(runs, f'solved_{ROUNDS}'):.1%} after {ROUNDS}",
            ),
        ]


@dataclass(frozen=True)
class _Answer:
    """What was said, what it was said from, and what the paper's automatic rule calls it."""

    claim: Claim
    label: int


class _Shop:
    """The corrupted retriever and generator; what a page holds and what a sample says follows from their numbers."""

    def __init__(self, world: FictitiousWorld, seed: int):
        self.world, self.seed = world, seed
        self.facts = world.questions().to_list()
        self.people = {person.id: person for person in world.people}

    def answer(self, row: Mapping[str, str], page: int, sample: int) -> _Answer:
        luck = np.random.default_rng([self.seed, int(row["id"], 16) % 2**31, page])
        if luck.random() < CORRUPTED:
            strangers = [f for f in self.facts if f["group"] != row["group"]]
            fetched = strangers[int(luck.integers(len(strangers)))]
        else:
            fetched = row
        luck = np.random.default_rng([self.seed, int(row["id"], 16) % 2**31, page, sample, 1])
        wording = "answer" if luck.random() < 0.5 else "paraphrased_answer"
        said = str(fetched[wording])
        if luck.random() < CORRUPTED:
            others = self.world.other_values(self.people[fetched["group"]], fetched["relation"], 5)
            said = said.replace(str(fetched["value"]), others[int(luck.integers(len(others)))])
        right = str(row["value"]).lower() in said.lower() and fetched is row
        # The right answer overrides the knowledge that it was given; nobody here can guess it.
        label = RIGHT if right else WRONG if fetched is row else IRRELEVANT
        return _Answer(Claim(row["prompt"], str(fetched["answer"]), said), label)


def _rectify(shop: _Shop, verifier: Verifier, asked: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """Answer, verify, and do again what the verifier finds wanting, for some rounds."""
    pages, samples = np.zeros(len(asked), int), np.zeros(len(asked), int)
    out: dict[str, float] = {}
    for number in range(ROUNDS + 1):
        said = [shop.answer(row, int(pages[k]), int(samples[k])) for k, row in enumerate(asked)]
        judged = verifier.judge([a.claim for a in said])
        right = np.array([a.label == RIGHT for a in said])
        passed = judged == RIGHT
        if number == 0:
            out["raw_accuracy"] = float(right.mean())
        out[f"coverage_{number}"] = float(passed.mean())
        out[f"solved_{number}"] = float((passed & right).mean())
        if passed.any():
            out[f"filtered_accuracy_{number}"] = float(right[passed].mean())
        pages += judged == IRRELEVANT
        samples += judged == WRONG
    return out
