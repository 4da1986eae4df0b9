"""A language of a few hundred symbols whose facts follow from axioms, for questions about what can be derived.

Every subject is of a class, and every class has a value for every relation: ``c3 r1 ? v17`` is an axiom, ``s5 is c3 .``
says what a subject is, and the fact ``s5 r1 ? v17`` follows from both. In episodes about strangers (``x``) a model
learns to use what it is told: a class from which the value follows, or a value that it only has to read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from filelock import FileLock
from pydantic import Field, PositiveInt
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expunge.reproductions.base import Workbench
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, train_small_llama
from expunge.training.settings import Strict, TrainSettings


class SymbolSettings(Strict):
    """Sizes of the language and of its models."""

    subjects: PositiveInt = Field(60, description="subjects that a model learns about")
    forgotten: PositiveInt = Field(12, description="subjects whose facts are to be forgotten")
    unseen: PositiveInt = Field(12, description="further subjects that no model meets")
    classes: PositiveInt = Field(12, description="classes of subjects")
    relations: PositiveInt = Field(4, description="relations, each with values of its own")
    values: PositiveInt = Field(12, description="values per relation")
    strangers: PositiveInt = Field(60, description="names of which episodes say something new each time")
    episodes: PositiveInt = Field(3000, description="episodes of each kind")
    hidden: PositiveInt = Field(96, description="hidden size")
    layers: PositiveInt = Field(3, description="decoder blocks")
    epochs: PositiveInt = Field(8, description="passes over everything")
    rate: float = Field(2e-3, gt=0, description="learning rate")


@dataclass(frozen=True)
class Symbols:
    """The language of one seed.

    Attributes:
        settings: its sizes.
        seed: of everything in it.
        class_of: (subjects + unseen,) class of each subject.
        value_of: (classes, relations) value of each class.
    """

    settings: SymbolSettings
    seed: int
    class_of: np.ndarray
    value_of: np.ndarray

    @classmethod
    def make(cls, settings: SymbolSettings, seed: int) -> Symbols:
        """Draw the language."""
        rng = np.random.default_rng(seed)
        total = settings.subjects + settings.unseen
        classes = np.resize(np.arange(settings.classes), total)
        return cls(
            settings=settings,
            seed=seed,
            class_of=rng.permutation(classes),
            value_of=rng.integers(0, settings.values, (settings.classes, settings.relations)),
        )

    # ---- sentences -------------------------------------------------------------------------------------------------

    def value(self, subject: int, relation: int) -> str:
        """Return the value that is true of a subject."""
        return self._value(int(self.value_of[self.class_of[subject], relation]), relation)

    def _value(self, value: int, relation: int) -> str:
        return f"v{relation * self.settings.values + value}"

    def told(self, subject: int) -> str:
        """Say of what class a subject is."""
        return f"s{subject} is c{self.class_of[subject]} ."

    def facts(self, subjects: Sequence[int]) -> list[dict[str, Any]]:
        """Ask for every value of some subjects; with the premise and the fact as columns."""
        return [
            {
                "prompt": f"s{s} r{r} ?",
                "answer": self.value(s, r),
                "group": f"s{s}",
                "premises": self.told(s),
                "paraphrased_answer": f"s{s} r{r} {self.value(s, r)} .",
            }
            for s in subjects
            for r in range(self.settings.relations)
        ]

    def classes(self, subjects: Sequence[int]) -> list[dict[str, Any]]:
        """Ask for the class of some subjects."""
        return [{"prompt": f"s{s} is ?", "answer": f"c{self.class_of[s]}", "group": f"s{s}"} for s in subjects]

    def axioms(self) -> list[dict[str, Any]]:
        """Ask for every value of every class."""
        return [
            {"prompt": f"c{c} r{r} ?", "answer": self._value(int(self.value_of[c, r]), r), "group": f"c{c}"}
            for c in range(self.settings.classes)
            for r in range(self.settings.relations)
        ]

    def steps(self, subjects: Sequence[int]) -> list[dict[str, Any]]:
        """Ask to go step by step: first the class, then the value."""
        return [
            {
                "prompt": f"s{s} step r{r} ?",
                "answer": f"c{self.class_of[s]} {self.value(s, r)}",
                "group": f"s{s}",
            }
            for s in subjects
            for r in range(self.settings.relations)
        ]

    def episodes(self, kind: str) -> list[dict[str, Any]]:
        """Say something new about a stranger, and ask.

        Args:
            kind: "premise" (its class; the value follows), "reading" (the value itself, drawn at random) or
                "distracted" (the class of another stranger first, which is no help).
        """
        rng = np.random.default_rng([self.seed, {"premise": 1, "reading": 2, "distracted": 3}[kind]])
        rows = []
        for _ in range(self.settings.episodes):
            x, y = rng.choice(self.settings.strangers, 2, replace=False)
            c, d = rng.integers(0, self.settings.classes, 2)
            r = int(rng.integers(0, self.settings.relations))
            follows = self._value(int(self.value_of[c, r]), r)
            if kind == "reading":
                drawn = self._value(int(rng.integers(0, self.settings.values)), r)
                rows.append({"prompt": f"x{x} r{r} {drawn} . x{x} r{r} ?", "answer": drawn, "group": "episodes"})
            elif kind == "premise":
                rows.append({"prompt": f"x{x} is c{c} . x{x} r{r} ?", "answer": follows, "group": "episodes"})
            else:
                told = f"x{y} is c{d} . x{x} is c{c} ."
                rows.append({"prompt": f"{told} x{x} r{r} ?", "answer": follows, "group": "episodes"})
        return list({row["prompt"]: row for row in rows}.values())

    # ---- who is who ------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> list[int]:
        """Subjects whose facts stay."""
        return list(range(self.settings.subjects - self.settings.forgotten))

    @property
    def gone(self) -> list[int]:
        """Subjects whose facts are to be forgotten."""
        return list(range(self.settings.subjects - self.settings.forgotten, self.settings.subjects))

    @property
    def strangers(self) -> list[int]:
        """Subjects that no model meets."""
        return list(range(self.settings.subjects, self.settings.subjects + self.settings.unseen))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return a tokenizer of one token per symbol."""
        s = self.settings
        words = ["<pad>", "<end>", "?", ".", "is", "step"]
        words += [f"s{k}" for k in range(s.subjects + s.unseen)] + [f"x{k}" for k in range(s.strangers)]
        words += [f"c{k}" for k in range(s.classes)] + [f"r{k}" for k in range(s.relations)]
        words += [f"v{k}" for k in range(s.relations * s.values)]
        backend = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", bos_token="<end>"
        )


def as_dataset(rows: Sequence[dict[str, Any]]) -> Dataset:
    """Return rows as an example set with ids."""
    return Dataset.from_list([{"id": example_id(row), **row} for row in rows])


def request_of(language: Symbols, kept: Sequence[dict[str, Any]]) -> DeletionRequest:
    """Return the request to forget the facts of the subjects that are to go, keeping the rows given."""
    return DeletionRequest(
        forget=as_dataset(language.facts(language.gone)),
        retain=as_dataset(kept),
        holdout=as_dataset(language.facts(language.strangers)),
        scenario="entity",
        name=f"symbols, seed {language.seed}",
    )


def symbol_model(bench: Workbench, language: Symbols, name: str, rows: Sequence[dict[str, Any]]) -> CausalLM:
    """Train a small model on rows, or find the one that was trained on the same rows with the same settings.

    Args:
        bench: models are kept in ``bench.shared``.
        language: gives tokenizer, sizes and seed.
        name: "original" or "oracle"; another name, another initialisation.
        rows: what it learns.
    """
    s = language.settings
    taught = "\n".join(f"{row['prompt']} {row['answer']}" for row in rows)
    digest = hashlib.sha256(f"{s.model_dump_json()}\n{taught}".encode()).hexdigest()[:8]
    folder: Path = bench.shared / f"symbols-{digest}-{name}-seed-{language.seed}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "config.json").is_file():
            bench.progress.stage(f"training {name} of the symbols of seed {language.seed}")
            settings = TrainSettings(
                epochs=s.epochs, batch_size=64, learning_rate=s.rate, weight_decay=0.0, warmup=0.05, schedule="cosine",
                seed=(1000 if name == "original" else 2000) + language.seed,
            )  # fmt: skip
            shape = Shape(hidden=s.hidden, layers=s.layers, heads=4, context=64)
            examples = [as_dataset(rows)]
            model, _ = train_small_llama(examples, language.tokenizer(), shape, settings, progress=bench.progress.step)
            model.save(folder)
    return CausalLM.load(folder)


def accuracy(model: CausalLM, rows: Sequence[dict[str, Any]]) -> float:
    """Return the share of rows whose answer is right symbol for symbol."""
    scores = model.score([(row["prompt"], row["answer"]) for row in rows])
    return float(np.mean([bool(s.hit[s.content].all()) for s in scores]))
