"""The data sets of the tables for classifiers and regressors: what is read, what model learns it, what is forgotten.

Every model is small and trained here from nothing, so that it can be retrained as often as a table needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array3D, Dataset, Features, Value
from transformers import BertConfig, BertForSequenceClassification, ResNetConfig, ResNetForImageClassification

from expunge.data import known_sets, scenarios
from expunge.data.scenarios import drawn
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.requests.request import DeletionRequest
from expunge.tasks.factories import Factory
from expunge.tasks.outcomes import Numbers
from expunge.tasks.predictor import Predictor
from expunge.tasks.table_inputs import TableInputs

MakeRequest = Callable[[Dataset, Dataset, int], DeletionRequest]
TEST_SHARE = 0.2


@dataclass(frozen=True)
class KnownData:
    """A data set with its model.

    Attributes:
        title: how tables call it.
        kind: kind of the model.
        read: (folder or None) -> (train, test).
        size: examples that a run trains on unless told otherwise; None for all.
        start: (training set) -> a model whose weights do not matter, for it is always trained from fresh ones.
        training: settings that train it from fresh weights.
        scenarios: name -> (train, test, seed) -> request, whose holdout set are the test examples like the forget set.
        model: the model in words.
    """

    title: str
    kind: str
    read: Callable[[str | Path | None], tuple[Dataset, Dataset]]
    size: int | None
    start: Callable[[Dataset], Predictor]
    training: Mapping[str, Any]
    scenarios: Mapping[str, MakeRequest]
    model: str


# ---- reading ---------------------------------------------------------------------------------------------------


def _cifar10(folder: str | Path | None) -> tuple[Dataset, Dataset]:
    return as_arrays(known_sets.cifar10("train", folder)), as_arrays(known_sets.cifar10("test", folder))


def _digits(folder: str | Path | None) -> tuple[Dataset, Dataset]:
    return known_sets.digits("train"), known_sets.digits("test")


def _clinc150(folder: str | Path | None) -> tuple[Dataset, Dataset]:
    train, test = known_sets.clinc150("train", folder), known_sets.clinc150("test", folder)
    known = set(train["label"])
    return train, test.filter(lambda row: row["label"] in known)


def _split(read: Callable[[str | Path | None], Dataset], folder: str | Path | None) -> tuple[Dataset, Dataset]:
    """Draw a fifth of a set for testing, the same for all seeds."""
    everything = read(folder)
    test = drawn(everything, round(TEST_SHARE * len(everything)), seed=0)
    inside = set(test)
    return everything.select([i for i in range(len(everything)) if i not in inside]), everything.select(test)


def _housing(folder: str | Path | None) -> Dataset:
    """With prices in thousands of dollars."""
    found = known_sets.california_housing(folder)
    prices = [price / 1000 for price in found["target"]]
    return found.remove_columns("target").add_column("target", prices)


def as_arrays(pictures: Dataset) -> Dataset:
    """Return a set whose pictures are (H, W, 3) arrays of bytes, decoded once instead of whenever they are read."""
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures["image"]])
    kinds: dict[str, Any] = {"id": Value("string"), "label": Value("string")}
    rest = {name: list(pictures[name]) for name in kinds}
    features = Features({**kinds, "image": Array3D(shape=arrays.shape[1:], dtype="uint8")})
    return Dataset.from_dict({**rest, "image": list(arrays)}, features=features)


def cut(train: Dataset, size: int | None) -> Dataset:
    """Return ``size`` examples drawn by id, every label in the share that it has of the set; all of them if None.

    A training set cut to equally many of each label would differ from its test set in the shares of labels, and an
    attack that compares the two would find that instead of membership.
    """
    if size is None or size >= len(train):
        return train
    if "label" not in train.column_names:
        return train.select(drawn(train, size, seed=0))
    labels = np.asarray(train["label"])
    names, counts = np.unique(labels, return_counts=True)
    wanted, left = np.divmod(counts * size, len(train))
    # What rounding leaves goes to the largest remainders, the first label first where they are equal.
    wanted[np.argsort(-left, kind="stable")[: size - wanted.sum()]] += 1
    chosen: list[int] = []
    for name, count in zip(names, wanted.tolist(), strict=True):
        own = np.flatnonzero(labels == name)
        chosen += own[drawn(train.select(own), count, seed=0)].tolist()
    return train.select(sorted(chosen))


# ---- models ----------------------------------------------------------------------------------------------------


def small_resnet(names: list[str]) -> Predictor:
    """Return a ResNet of three basic blocks for 32 x 32 pictures (80 thousand weights)."""
    config = ResNetConfig(
        num_channels=3, embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic",
        id2label=dict(enumerate(names)), label2id={name: k for k, name in enumerate(names)},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetForImageClassification(config)
    return Predictor.of_images(model, mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))


def _resnet_of(train: Dataset) -> Predictor:
    return small_resnet(sorted(set(train["label"])))


def _digits_mlp(train: Dataset) -> Predictor:
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 64, "outputs": 10, "hidden": [256, 256]})
    return Predictor.of_images(factory.make(0), sorted(set(train["label"])), factory=factory, channels=1)


def _bert_of(train: Dataset) -> Predictor:
    names = sorted(set(train["label"]))
    config = BertConfig(
        vocab_size=2048, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
        max_position_embeddings=64, id2label=dict(enumerate(names)), label2id={n: k for k, n in enumerate(names)},
    )  # fmt: skip
    tokenizer = small_tokenizer(list(train["text"]), config.vocab_size)
    config.vocab_size, config.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    return Predictor.of_texts(model, tokenizer, max_length=64)


def _table_classifier(train: Dataset) -> Predictor:
    return Predictor.of_table(TableInputs.fit(train, missing="mean"), sorted(set(train["label"])))


def _table_regressor(train: Dataset) -> Predictor:
    return Predictor.of_table(TableInputs.fit(train, missing="mean"), Numbers.fit(train), hidden=(64, 64))


# ---- what is forgotten -----------------------------------------------------------------------------------------


def _random(train: Dataset, test: Dataset, seed: int, share: float = 0.1) -> DeletionRequest:
    return scenarios.random_examples(train, share, seed, unseen=test, name=f"random {share:.0%}")


def _class(label: str, train: Dataset, test: Dataset, seed: int) -> DeletionRequest:
    return scenarios.whole_class(train, label, unseen=test)


def _group(value: str, column: str, train: Dataset, test: Dataset, seed: int) -> DeletionRequest:
    return scenarios.subgroup(train, value, column=column, unseen=test)


def _range(low: float, high: float, train: Dataset, test: Dataset, seed: int) -> DeletionRequest:
    return scenarios.value_range(train, low, high, unseen=test)


# ---- the sets --------------------------------------------------------------------------------------------------

_SCRATCH = {"weight_decay": 0.01, "warmup": 0.1, "schedule": "cosine"}

CLASSIFICATION: Mapping[str, KnownData] = {
    "cifar10": KnownData(
        "CIFAR-10 (subset)", "image_classifier", _cifar10, 4000, _resnet_of,
        {**_SCRATCH, "epochs": 15, "batch_size": 128, "learning_rate": 3e-3},
        {"random": _random, "class": partial(_class, "airplane")},
        "ResNet of three basic blocks, 80 thousand weights",
    ),
    "digits": KnownData(
        "digits with pixel noise", "image_classifier", _digits, None, _digits_mlp,
        {**_SCRATCH, "epochs": 60, "batch_size": 64, "learning_rate": 1e-3},
        {"random": _random, "class": partial(_class, "3")},
        "MLP 64-256-256-10",
    ),
    "clinc150": KnownData(
        "CLINC150", "text_classifier", _clinc150, None, _bert_of,
        {**_SCRATCH, "epochs": 20, "batch_size": 64, "learning_rate": 2e-3},
        {"random": _random, "class": partial(_class, "transfer")},
        "BERT of two layers, hidden size 96",
    ),
    "adult": KnownData(
        "adult", "tabular_classifier", partial(_split, known_sets.adult), 8000, _table_classifier,
        {**_SCRATCH, "epochs": 20, "batch_size": 128, "learning_rate": 2e-3},
        {"random": _random, "group": partial(_group, "Masters", "education")},
        "MLP with two hidden layers of 64",
    ),
}  # fmt: skip

REGRESSION: Mapping[str, KnownData] = {
    "california": KnownData(
        "California housing (thousands of dollars)", "regressor", partial(_split, _housing), 8000,
        _table_regressor, {**_SCRATCH, "epochs": 30, "batch_size": 128, "learning_rate": 2e-3},
        {"group": partial(_group, "NEAR BAY", "group"), "random": _random}, "MLP with two hidden layers of 64",
    ),
    "abalone": KnownData(
        "abalone (rings)", "regressor", partial(_split, known_sets.abalone), None, _table_regressor,
        {**_SCRATCH, "epochs": 30, "batch_size": 64, "learning_rate": 2e-3},
        {"range": partial(_range, 1, 7), "random": _random}, "MLP with two hidden layers of 64",
    ),
}  # fmt: skip


def known_data(name: str) -> KnownData:
    """Return a data set by name.

    Raises:
        BadInput: there is none of that name.
    """
    every = {**CLASSIFICATION, **REGRESSION}
    if name not in every:
        raise BadInput(Problem("--dataset", f"'{name}' is not one", near_names(name, list(every))))
    return every[name]


@lru_cache(maxsize=4)
def read_data(name: str, folder: str | None, size: int | None) -> tuple[Dataset, Dataset]:
    """Return (train, test) of a data set, the training set cut to ``size`` (by default its own).

    Args:
        name: of the set.
        folder: where the published files are; ``$EXPUNGE_DATA`` if None.
        size: training examples.

    Raises:
        BadInput: the files are not there.
    """
    found = known_data(name)
    train, test = found.read(folder)
    return cut(train, size or found.size), test


def make_request(name: str, scenario: str, train: Dataset, test: Dataset, seed: int) -> DeletionRequest:
    """Return the request of a scenario.

    Raises:
        BadInput: the data set has no such scenario.
    """
    known = known_data(name).scenarios
    if scenario not in known:
        raise BadInput(Problem("--scenario", f"{name} has no '{scenario}'", f"it has {', '.join(known)}"))
    return known[scenario](train, test, seed)
