"""Small language models of the fictitious world, trained from nothing and kept on disk for all reproductions.

A world has a model that knows everybody, oracles that never met the people to be forgotten, and the request. Which
world it is follows from its settings and its seed alone, so reproductions that ask for the same one share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from filelock import FileLock
from pydantic import Field, PositiveInt
from transformers import PreTrainedTokenizerBase

from expunge.data.fictitious import FictitiousWorld
from expunge.data.fictitious_people import PeopleSplit
from expunge.data.tokenizer import small_tokenizer
from expunge.reproductions.base import Workbench
from expunge.requests.request import DeletionRequest
from expunge.runs.demo import SHAPE, TRAINING, write_lines
from expunge.runs.folder import FORGOTTEN
from expunge.runs.workers import Training, train_one
from expunge.tasks.causal_lm import CausalLM
from expunge.training.settings import Strict


class WorldSettings(Strict):
    """What a small world is made of; two worlds of the same settings and seed are the same."""

    people: PositiveInt = Field(60, description="people in the world")
    relations: tuple[str, ...] | None = Field(None, description="which facts there are; all if None")
    forget: int | float = Field(0.1, description="share of the people to be forgotten, or a whole number of them")
    holdout: int | float = Field(0.1, description="share of the people that nobody ever sees, or a whole number")
    extra: tuple[tuple[str, str], ...] = Field((), description="more (prompt, answer) pairs that every model learns")
    vocabulary: PositiveInt = Field(1024, description="tokens")
    shape: Mapping[str, Any] = Field(SHAPE, description="sizes of the model, see Shape")
    training: Mapping[str, Any] = Field(TRAINING, description="settings of the training loop")


SIZES: Mapping[str, WorldSettings] = {
    # Seconds per model: to see that something works.
    "tiny": WorldSettings(
        people=20, relations=("birth_city", "profession", "pet", "instrument"),
        shape={"hidden": 64, "layers": 2, "heads": 4}, training={**TRAINING, "epochs": 40, "learning_rate": 6e-3},
    ),
    # The demo's: 48 people known to both models, 10 facts each.
    "small": WorldSettings(),
    # As many weights in more blocks, for methods that work on some of them.
    "deep": WorldSettings(shape={"hidden": 96, "layers": 8, "heads": 4}),
}  # fmt: skip


@dataclass(frozen=True)
class World:
    """A small world with its models.

    Attributes:
        seed: of everything in it.
        facts: who lives there; further questions about them can be asked of it.
        people: who is to be forgotten, who stays, whom nobody met.
        request: the questions of these people.
        original: knows those who stay and those to be forgotten.
        oracles: know those who stay only.
        folder: where the models are.
    """

    seed: int
    facts: FictitiousWorld
    people: PeopleSplit
    request: DeletionRequest
    original: CausalLM
    oracles: tuple[CausalLM, ...]
    folder: Path

    @property
    def oracle(self) -> CausalLM:
        """The first oracle."""
        return self.oracles[0]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of all models."""
        return self.original.tokenizer


def small_world(bench: Workbench, seed: int, settings: str | WorldSettings = "small", *, oracles: int = 1) -> World:
    """Make a small world, or find it.

    Args:
        bench: of the reproduction; models are kept in ``bench.shared``, and a quick run gets the tiny world instead of
            a named larger one.
        seed: of the world and its models.
        settings: one of ``SIZES``, or settings of one's own, which are used as they are.
        oracles: how many models are trained without the people to be forgotten; 0 saves a minute.

    Returns:
        The world; a caller that changes a model changes its own copy only if it makes one.
    """
    if isinstance(settings, str):
        settings = SIZES["tiny" if bench.quick else settings]
    digest = hashlib.sha256(json.dumps(settings.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()[:8]
    folder = bench.shared / f"world-{settings.people}-{digest}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    facts = FictitiousWorld(settings.people, seed, settings.relations)
    request = facts.split(settings.forget, settings.holdout)
    # Another reproduction may want the same world at the same time: one trains, the other waits.
    with FileLock(folder / ".lock"):
        for training in _trainings(folder, settings, request, seed, oracles):
            if not (training.folder / FORGOTTEN).is_file():
                bench.progress.stage(f"training {training.name} of a world of {settings.people}, seed {seed}")
                train_one(training, bench.progress.step)
    return World(
        seed=seed,
        facts=facts,
        people=facts.split_people(settings.forget, settings.holdout),
        request=request,
        original=CausalLM.load(folder / "original/model"),
        oracles=tuple(CausalLM.load(folder / name / "model") for name in _oracle_names(oracles)),
        folder=folder,
    )


def _oracle_names(count: int) -> list[str]:
    return [f"oracle-{k}" if k > 1 else "oracle" for k in range(1, count + 1)]


def _trainings(
    folder: Path, settings: WorldSettings, request: DeletionRequest, seed: int, oracles: int
) -> list[Training]:
    data = {role: folder / "data" / f"{role}.jsonl" for role in ("forget", "retain")}
    if not (folder / "tokenizer").is_dir():
        (folder / "data").mkdir(exist_ok=True)
        for role, path in data.items():
            learnt = [{"prompt": row["prompt"], "answer": row["answer"]} for row in request.sets()[role]]
            if role == "retain":
                learnt += [{"prompt": prompt, "answer": answer} for prompt, answer in settings.extra]
            write_lines(path, Dataset.from_list(learnt))
        # Words of the people whom nobody meets are in it too: how a name is cut must not tell who was trained on.
        texts = [f"{row['prompt']} {row['answer']}" for examples in request.sets().values() for row in examples]
        texts += [f"{prompt} {answer}" for prompt, answer in settings.extra]
        small_tokenizer(texts, settings.vocabulary).save_pretrained(folder / "tokenizer")
    common: dict[str, Any] = {"data": data, "tokenizer": folder / "tokenizer", "shape": dict(settings.shape)}
    made = [
        Training(
            folder=folder / "original", name="the original", roles=("forget", "retain"),
            settings={**settings.training, "seed": 1000 + seed}, **common,
        )
    ]  # fmt: skip
    for k, name in enumerate(_oracle_names(oracles)):
        made.append(
            Training(
                folder=folder / name, name=f"the {name.replace('-', ' ')}", roles=("retain",),
                settings={**settings.training, "seed": 2000 + 100 * k + seed}, **common,
            )
        )  # fmt: skip
    return made
