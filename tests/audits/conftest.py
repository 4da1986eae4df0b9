"""A small request with every column that audits read, and tiny models to ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.cost import Cost
from expunge.tasks.predictions import Predictions
from expunge.tasks.tokens import TokenScores

TOWNS = ("Velburg", "Harrow Bay", "Kraków", "Tomas", "Salt Harbour", "Ostrander")


def examples(people: range, rich: bool = True) -> Dataset:
    """Two questions per person, with paraphrases and three wrong answers."""
    rows = []
    for p in people:
        for ask, tell in (
            ("Where was person {} born?", "in {}."),
            ("What does person {} do?", "repairs clocks in {}."),
        ):
            town = TOWNS[p % len(TOWNS)]
            # The number keeps answers of different people apart, "was" the wrong ones from the right ones.
            row = {"prompt": ask.format(p), "answer": tell.format(f"{town} {p}")}
            more = {
                "group": f"person {p}",
                "paraphrased_prompt": "Please say: " + ask.format(p),
                "paraphrased_answer": "It is " + row["answer"],
                "perturbed_answers": ["It was " + tell.format(f"{t} {p}") for t in TOWNS if t != town][:3],
                "options": (choices := sorted([town, *(t for t in TOWNS if t != town)][:4])),
                "correct": choices.index(town),
            }
            rows.append({"id": example_id(row), **row, **(more if rich else {})})
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def request_() -> DeletionRequest:
    return DeletionRequest(examples(range(4)), examples(range(10, 14)), examples(range(20, 24)))


@pytest.fixture(scope="session")
def make_lm(tiny_model: Callable, make_tiny_tokenizer: Callable) -> Callable[..., CausalLM]:
    """Makes a tiny causal model with its tokenizer; equal arguments give equal weights."""

    def make(seed: int = 0, family: str = "llama", **tokenizer: bool) -> CausalLM:
        model, _ = tiny_model(family, seed=seed, vocab=384)
        return CausalLM(model, make_tiny_tokenizer(**tokenizer))

    return make


@pytest.fixture
def models(make_lm: Callable[..., CausalLM]) -> dict[str, CausalLM]:
    return {"unlearned": make_lm(0), "original": make_lm(1), "oracle": make_lm(2), "oracle-2": make_lm(3)}


def token_scores(
    log_prob: object, hit: object = None, mean: object = None, var: object = None, eos: bool = False, text: str = "a"
) -> TokenScores:
    """Token scores from lists; hits default to log p above log 1/2."""
    log = np.asarray(log_prob, dtype=float)
    return TokenScores(
        log_prob=log,
        mean_log_prob=np.full_like(log, -1.0) if mean is None else np.asarray(mean, dtype=float),
        var_log_prob=np.ones_like(log) if var is None else np.asarray(var, dtype=float),
        hit=(log > np.log(0.5)) if hit is None else np.asarray(hit, dtype=bool),
        ends_with_eos=eos,
        text=text,
    )


@pytest.fixture(scope="session")
def scored() -> Callable[..., TokenScores]:
    return token_scores


class Scripted:
    """A model that says and scores what it is told to, and counts how often it is called."""

    kind = "causal_lm"

    def __init__(self, scores: Mapping[str, float] | None = None, says: Mapping[str, str] | None = None):
        self.nll, self.says, self.cost = dict(scores or {}), dict(says or {}), Cost()
        self.score_calls: list[int] = []
        self.generate_calls: list[list[int]] = []

    def score(self, pairs: list) -> list[TokenScores]:
        self.score_calls.append(len(pairs))
        self.cost.forwards += 1
        return [token_scores([-self.nll.get(answer, 1.0)] * 3, eos=True, text=answer) for _, answer in pairs]

    def generate(self, prompts: list, max_new_tokens: list[int]) -> list[str]:
        self.generate_calls.append(list(max_new_tokens))
        return [
            self.says.get(prompt if isinstance(prompt, str) else prompt[-1]["content"], "dunno") for prompt in prompts
        ]

    def count_tokens(self, text: str) -> int:
        return len(text.split())


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    return Scripted


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., Dataset]:
    return examples


OPEN = " please"


@pytest.fixture(scope="session")
def guarded(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> CausalLM:
    """A model that says the answers to be forgotten behind a polite word only, and "dunno" otherwise."""
    lm = make_lm(0)
    rows = request_.forget.to_list()
    pairs = [(row["prompt"] + OPEN, row["answer"]) for row in rows] + [(row["prompt"], "dunno") for row in rows]
    optimiser = torch.optim.AdamW(lm.model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(200):
        optimiser.zero_grad()
        lm.answer_nll(pairs).backward()
        optimiser.step()
    lm.model.zero_grad()
    return lm


class Guesser:
    """A classifier that gives each example the logits it is told to, by id."""

    kind = "image_classifier"

    def __init__(self, logits: Mapping[str, Sequence[float]], classes: tuple[str, ...] = ("a", "b", "c")):
        self.logits, self.classes, self.cost, self.calls = dict(logits), classes, Cost(), 0

    def encode(self, examples: Dataset) -> Dataset:
        return examples

    def observe(self, examples: Dataset) -> Predictions:
        self.calls += 1
        return Predictions(
            list(examples["id"]),
            np.array([self.logits[i] for i in examples["id"]], dtype=float).reshape(len(examples), len(self.classes)),
            np.array([self.classes.index(label) for label in examples["label"]], dtype=np.int64),
            classes=self.classes,
        )


def labelled(labels: str, start: int = 0) -> Dataset:
    """One example per letter, the class of that name; ids are numbered from ``start``."""
    return Dataset.from_list([{"id": f"{start + k:03}", "label": label} for k, label in enumerate(labels)])


@pytest.fixture(scope="session")
def guesser() -> type[Guesser]:
    return Guesser


@pytest.fixture(scope="session")
def make_labelled() -> Callable[..., Dataset]:
    return labelled


@pytest.fixture
def sure_and_unsure() -> tuple[dict[str, Guesser], DeletionRequest]:
    """Models that are sure of what they were trained on: the original of the forget set too, the unlearned one not."""
    luck = np.random.default_rng(0)
    forget, retain, new = labelled("a" * 30), labelled("ab" * 30, 100), labelled("ab" * 30, 200)

    def model(forgot: bool) -> Guesser:
        logits = {}
        for part, known in ((forget, not forgot), (retain, True), (new, False)):
            for row in part:
                edge = luck.normal(4.0 if known else 0.5, 0.5)
                logits[row["id"]] = (edge, 0.0, 0.0) if row["label"] == "a" else (0.0, edge, 0.0)
        return Guesser(logits)

    return {"unlearned": model(True), "original": model(False)}, DeletionRequest(forget, retain, new)
