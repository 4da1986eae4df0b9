"""Small classifiers that several reproductions share: noisy digits and pictures, with what knows all and what does not.

Digits without noise are too easy: a network predicts those that it never saw nearly as well as those that it did, and
every way to forget looks perfect.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets
from filelock import FileLock
from torch import nn

from expunge.audits.classification.accuracies import accuracy, unlearning_accuracy
from expunge.audits.classification.average_gap import average_gap
from expunge.audits.classification.svc_mia import mia_efficacy
from expunge.data import known_sets, scenarios
from expunge.methods.run import unlearn
from expunge.reproductions.base import mean
from expunge.requests.request import DeletionRequest
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

Scenario = Literal["random", "class"]
DIGITS = tuple("0123456789")
# Plain SGD, as in the papers: Adam's steps do not fade with the loss, so that fine-tuning alone would forget.
RECIPE: Mapping[str, Any] = {
    "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64, "epochs": 40,
    "warmup": 0.0, "schedule": "cosine", "clip_norm": None,
}  # fmt: skip


@dataclass(frozen=True)
class ClassifierWorld:
    """A training set with a part to forget, a test set, and how models of it are trained.

    Attributes:
        request: what is to be forgotten and what is kept.
        test: examples that no model sees, of the classes that are kept.
        start: the network with fresh weights.
        recipe: settings of training.
        seed: of the weights and batches.
        folder: keeps the models, so that other reproductions find them; None keeps them in memory.
    """

    request: DeletionRequest
    test: Dataset
    start: Predictor
    recipe: Mapping[str, Any]
    seed: int
    folder: Path | None = None
    _models: dict[str, Predictor] = field(default_factory=dict)

    @property
    def original(self) -> Predictor:
        """Trained on everything."""
        assert self.request.retain is not None
        everything = concatenate_datasets([self.request.forget, self.request.retain])
        return self._trained(everything, self.seed)

    def retrained(self, number: int = 0) -> Predictor:
        """Trained without the forget set; other numbers, other weights."""
        assert self.request.retain is not None
        return self._trained(self.request.retain, self.seed + 100 * (number + 1))

    def _trained(self, examples: Dataset, seed: int) -> Predictor:
        """Train a model, or find it: by what it is trained on and how."""
        assert self.start.factory is not None
        facts = [sorted(examples["id"]), seed, dict(self.recipe), self.start.factory.settings()]
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        if key in self._models:
            return self._models[key]
        if self.folder is None:
            self._models[key] = self._train(examples, seed)
            return self._models[key]
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / f"classifier-{key}"
        # Another reproduction may want the same model at the same time: one trains, the other waits.
        with FileLock(self.folder / f".classifier-{key}.lock"):
            if not place.is_dir():
                self._train(examples, seed).save(place)
        self._models[key] = self.start.load_like(place)
        return self._models[key]

    def _train(self, examples: Dataset, seed: int) -> Predictor:
        settings = {**self.recipe, "seed": seed}
        return predictor(unlearn(self.start, DeletionRequest(self.test, examples), "retrain", settings=settings).model)

    @cached_property
    def sets(self) -> Mapping[str, LabelledExamples]:
        """Forget, retain and test set, encoded once."""
        assert self.request.retain is not None
        parts = {"forget": self.request.forget, "retain": self.request.retain, "test": self.test}
        return {name: self.start.encode(part) for name, part in parts.items()}

    def record(self, model: Any) -> dict[str, float]:
        """Return UA, RA, TA and MIA-efficacy of a model in percent."""
        found = {name: predictor(model).observe(part) for name, part in self.sets.items()}
        return {
            "ua": unlearning_accuracy(found["forget"].correct),
            "ra": accuracy(found["retain"].correct),
            "ta": accuracy(found["test"].correct),
            "mia": mia_efficacy(found["retain"], found["test"], found["forget"], seed=self.seed, most=600),
        }

    def forget(self, method: str, settings: Mapping[str, Any], model: Predictor | None = None) -> Predictor:
        """Let a method forget, from the original model or another one."""
        chosen = {"seed": self.seed, **settings}
        return predictor(unlearn(model or self.original, self.request, method, settings=chosen).model)


def predictor(model: Any) -> Predictor:
    """Return a task that is a predictor as one.

    Raises:
        TypeError: it is of another class.
    """
    if not isinstance(model, Predictor):
        raise TypeError(f"a {type(model).__name__} is no classifier")
    return model


def digits_world(
    seed: int,
    scenario: Scenario,
    *,
    hidden: Sequence[int] = (256, 256),
    noise: float = 0.45,
    quick: bool = False,
    folder: Path | None = None,
) -> ClassifierWorld:
    """Return the digits of scikit-learn with noise on their pixels, of which a tenth or the threes are to be forgotten.

    Args:
        seed: of noise, split, choice, weights and batches.
        scenario: what is to be forgotten.
        hidden: widths of the layers.
        noise: standard deviation, of pixels from 0 to 1.
        quick: train less.
        folder: see ``ClassifierWorld``.
    """
    train, test = (known_sets.digits(part, noise, seed) for part in ("train", "test"))
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 64, "outputs": 10, "hidden": list(hidden)})
    start = Predictor.of_images(factory.make(seed), DIGITS, factory=factory, channels=1)
    recipe = {**RECIPE, "epochs": 8} if quick else RECIPE
    return _world(train, test, start, recipe, seed, scenario, "3", folder)


def _world(
    train: Dataset,
    test: Dataset,
    start: Predictor,
    recipe: Mapping[str, Any],
    seed: int,
    scenario: Scenario,
    label: str,
    folder: Path | None,
) -> ClassifierWorld:
    if scenario == "random":
        return ClassifierWorld(scenarios.random_examples(train, 0.1, seed), test, start, recipe, seed, folder)
    kept = test.select([i for i, name in enumerate(test["label"]) if str(name) != label])
    return ClassifierWorld(scenarios.whole_class(train, label), kept, start, recipe, seed, folder)


def measured(
    world: ClassifierWorld, models: Mapping[str, Any], reference: Mapping[str, float], prefix: str
) -> dict[str, float]:
    """Return ``<prefix>_<name>_<metric>`` of several models: UA, RA, TA, MIA-efficacy and the average gap.

    Args:
        world: what they are measured on.
        models: by name.
        reference: the record of the model that never saw the forget set.
        prefix: of the names.
    """
    found: dict[str, float] = {}
    for name, model in models.items():
        record = world.record(model)
        found |= {f"{prefix}_{name}_{metric}": value for metric, value in record.items()}
        found[f"{prefix}_{name}_gap"] = average_gap(record, reference)
    return found


def best(
    runs: Sequence[Mapping[str, float]], prefix: str, arm: str, rates: Sequence[float], metric: str = "gap"
) -> str:
    """Return the name of the learning rate of an arm that has the smallest number on average over the seeds.

    Args:
        runs: numbers named ``<prefix>_<arm>_<rate>_<metric>``.
        prefix, arm: of these names.
        rates: what was tried.
        metric: which number.
    """
    return min((f"{prefix}_{arm}_{rate:g}_{metric}" for rate in rates), key=lambda name: mean(runs, name))


def small_cnn(outputs: int, width: int = 16) -> nn.Module:
    """Return a network of four convolutions with batch normalisation for pictures of 32 x 32 pixels.

    Args:
        outputs: classes.
        width: filters of the first convolution; the others have twice and four times as many.
    """

    def block(inputs: int, filters: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, filters, 3, stride, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
        ]  # fmt: skip

    return nn.Sequential(
        *block(3, width, 2), *block(width, 2 * width, 1), *block(2 * width, 4 * width, 2),
        *block(4 * width, 4 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, outputs),
    )  # fmt: skip


def cifar_world(
    seed: int,
    scenario: Scenario,
    data: Path | None,
    *,
    per_class: int = 200,
    epochs: int = 30,
    width: int = 16,
    folder: Path | None = None,
) -> ClassifierWorld:
    """Return a part of CIFAR-10, of which a tenth or the cats are to be forgotten, for a small convolutional network.

    Args:
        seed: of the choice, weights and batches.
        scenario: what is to be forgotten.
        data: folder of the published data.
        per_class: training pictures of each class; of test pictures half as many.
        epochs: passes over them.
        width: of the network.
        folder: see ``ClassifierWorld``.

    Raises:
        BadInput: no such folder, or the pictures are not in it.
    """
    parts = [known_sets.cifar10("train", data), known_sets.cifar10("test", data)]
    train, test = (_per_class(part, n) for part, n in zip(parts, (per_class, per_class // 2), strict=True))
    names = sorted(set(train["label"]))
    factory = Factory("expunge.reproductions.classifier_world:small_cnn", {"outputs": len(names), "width": width})
    start = Predictor.of_images(factory.make(seed), names, factory=factory, mean=(0.49, 0.48, 0.45), std=(0.25,) * 3)
    return _world(train, test, start, {**RECIPE, "epochs": epochs}, seed, scenario, "cat", folder)


def _per_class(examples: Dataset, most: int) -> Dataset:
    """Keep the first so many of each class."""
    taken: dict[str, int] = {}
    chosen = []
    for index, label in enumerate(examples["label"]):
        taken[label] = taken.get(label, 0) + 1
        if taken[label] <= most:
            chosen.append(index)
    return examples.select(chosen)
