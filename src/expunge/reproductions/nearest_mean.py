"""Nearest class means: a frozen encoder with sums per class outlives a stream of tasks, and deletion is subtraction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from expunge.benchmarks.predictor_data import as_arrays, cut, small_resnet
from expunge.data import known_sets
from expunge.data.scenarios import drawn
from expunge.methods.classification.nearest_mean import ClassMeans, features_of
from expunge.methods.run import unlearn
from expunge.reproductions.base import Check, Reproduction, Workbench, column, mean
from expunge.requests.request import DeletionRequest
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

SETS = ("digits", "mnist", "cifar10")
KNOWN = 5  # classes that the encoder is trained on
PER_TASK = 2
AHEAD = 0.15
EXACT = 1e-12
SHOTS = 5
ENCODER = {"epochs": 15, "batch_size": 64, "learning_rate": 2e-3, "warmup": 0.1, "schedule": "cosine"}
STREAM = {"epochs": 5, "batch_size": 64, "learning_rate": 1e-3, "warmup": 0.0, "schedule": "constant"}


class NearestMeanReproduction(Reproduction):
    """Five tasks of two classes come one after the other: scikit-learn's digits, MNIST and CIFAR-10 (both from
    published files, where there are any).

    An encoder is trained on the first five classes and frozen; its unit-length features are summed per class. Against
    it the same network goes on training on each task in turn. After every task both are tested on all classes seen so
    far; the average over tasks is the average incremental accuracy. Controls: means of raw pixels, and of an encoder
    that was never trained. Then a tenth of the examples and a whole class are subtracted, and compared with means
    built without them. What deletion cannot reach is measured too: five examples of the deleted class are given back.
    """

    id = "nearest_mean"
    title = "class means of frozen features survive a stream of tasks, and deletion from them is exact"
    paper = "Janson et al. 2022, A Simple Baseline that Questions the Use of Pretrained Models in Continual Learning"
    claim = (
        "Over a stream of tasks the nearest class mean of frozen features is far more accurate than training in "
        "sequence; deleting examples or a class from the means equals never having added them"
    )

    def run(self, seed: int, bench: Workbench) -> Mapping[str, float]:
        out: dict[str, float] = {}
        for name in SETS if bench.data is not None else SETS[:1]:
            bench.progress.stage(f"{name}, seed {seed}")
            found = _stream(name, *_read(name, bench.data, bench.quick), seed, bench.quick)
            out |= {f"{name}_{key}": value for key, value in found.items()}
        return out

    def judge(self, runs: Sequence[Mapping[str, float]]) -> Sequence[Check]:
        return [check for name in SETS if f"{name}_nmc" in runs[0] for check in _judge(name, runs)]


def _read(name: str, data: Path | None, quick: bool) -> tuple[Dataset, Dataset]:
    if name == "digits":
        train, test = known_sets.digits("train", noise=0.0), known_sets.digits("test", noise=0.0)
    elif name == "mnist":
        train, test = known_sets.mnist10k("train", data), known_sets.mnist10k("test", data)
    else:
        train, test = (as_arrays(known_sets.cifar10(split, data)) for split in ("train", "test"))
    return cut(train, 300 if quick else 4000), cut(test, 200) if quick else test


def _start(name: str, names: list[str]) -> Predictor:
    if name == "cifar10":
        return small_resnet(names)
    pixels = 64 if name == "digits" else 784
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": pixels, "outputs": len(names), "hidden": [256, 128]})
    return Predictor.of_images(factory.make(0), names, factory=factory, channels=1)


def _of(examples: Dataset, names: Sequence[str]) -> Dataset:
    wanted = set(names)
    return examples.select([i for i, label in enumerate(examples["label"]) if label in wanted])


def _features(task: Predictor, examples: Dataset) -> tuple[Tensor, Tensor]:
    """(N, H) unit-length features in float64, and labels."""
    task.model.eval()
    hidden, labels = features_of(task, task.encode(examples))
    return F.normalize(hidden.double(), dim=-1), labels


def _pixels(task: Predictor, examples: Dataset) -> tuple[Tensor, Tensor]:
    """(N, D) unit-length pixels in float64, and labels."""
    encoded = task.encode(examples)
    (values,) = task.batch(encoded).values()
    return F.normalize(values.double().flatten(1), dim=-1), encoded.targets


def nearest(means: Tensor, counts: Tensor, features: Tensor) -> Tensor:
    """Return the class whose mean is nearest, as released: unit-length features, means that are not normalised again.

    Args:
        means: (C, H).
        counts: (C,); a class without examples is never chosen.
        features: (N, H).
    """
    distance = torch.cdist(features, means)
    return distance.masked_fill((counts == 0)[None], float("inf")).argmin(1)


def _accuracy(means: ClassMeans, features: Tensor, labels: Tensor) -> float:
    return float((nearest(means.means, means.counts, features) == labels).double().mean())


def _trained(
    start: Predictor, examples: Dataset, unseen: Dataset, method: str, settings: Mapping[str, Any], seed: int
) -> Predictor:
    """Train on examples alone; nothing is forgotten, and neither method reads what is named so."""
    request = DeletionRequest(unseen, examples)
    outcome = unlearn(start, request, method, settings={**settings, "seed": seed})
    assert isinstance(outcome.model, Predictor)
    return outcome.model


def _stream(name: str, train: Dataset, test: Dataset, seed: int, quick: bool) -> dict[str, float]:
    order = sorted(set(train["label"]))
    names = [order[k] for k in np.random.default_rng(seed).permutation(len(order))]
    start = _start(name, order)
    settings = {**ENCODER, "epochs": 3} if quick else ENCODER
    encoder = _trained(start, _of(train, names[:KNOWN]), test, "retrain", settings, seed)
    untrained = start.fresh(1000 + seed)
    width = _features(encoder, train.select([0]))[0].shape[1]
    pixels = _pixels(encoder, train.select([0]))[0].shape[1]
    readers = {"nmc": (encoder, _features, width), "untrained": (untrained, _features, width),
               "raw": (encoder, _pixels, pixels)}  # fmt: skip
    means = {key: ClassMeans(len(order), size) for key, (_, _, size) in readers.items()}
    scores: dict[str, list[float]] = {key: [] for key in (*readers, "sequential")}
    sequential = encoder
    for number in range(0, len(names), PER_TASK):
        task, seen = _of(train, names[number : number + PER_TASK]), _of(test, names[: number + PER_TASK])
        for key, (model, read, _) in readers.items():
            means[key].add(*read(model, task))
            scores[key].append(_accuracy(means[key], *read(model, seen)))
        sequential = _trained(sequential, task, test, "finetune", STREAM, seed)
        found = sequential.observe(sequential.encode(seen))
        scores["sequential"].append(float(found.correct.mean()))
    out = {key: float(np.mean(values)) for key, values in scores.items()}
    out |= {f"{key}_last": values[-1] for key, values in scores.items()}
    return out | _deletion(encoder, train, test, names, seed)


def _deletion(encoder: Predictor, train: Dataset, test: Dataset, names: Sequence[str], seed: int) -> dict[str, float]:
    """Subtract a tenth of the examples, and a class that the encoder knows and one that it does not."""
    features, labels = _features(encoder, train)
    asked, truth = _features(encoder, test)
    classes, out = len(names), {}
    index = {label: k for k, label in enumerate(sorted(names))}
    gone = torch.zeros(len(labels), dtype=torch.bool)
    gone[drawn(train, len(train) // 10, seed)] = True
    some = {"examples": gone, "known_class": labels == index[names[0]], "new_class": labels == index[names[-1]]}
    for key, removed in some.items():
        means, without = (ClassMeans(classes, features.shape[1]) for _ in range(2))
        means.add(features, labels)
        before = nearest(means.means, means.counts, asked)
        means.remove(features[removed], labels[removed])
        without.add(features[~removed], labels[~removed])
        same = nearest(means.means, means.counts, asked) == nearest(without.means, without.counts, asked)
        # A class without examples has no mean; its row is not compared.
        there = without.counts > 0
        out[f"{key}_difference"] = float((means.means - without.means)[there].abs().max())
        out[f"{key}_same_answers"] = float(same.double().mean())
        if key == "examples":
            continue
        own = truth == int(labels[removed][0])
        out[f"{key}_accuracy_before"] = float((before[own] == truth[own]).double().mean())
        out[f"{key}_accuracy_after"] = float(
            (nearest(means.means, means.counts, asked[own]) == truth[own]).double().mean()
        )
        few = torch.nonzero(removed)[:SHOTS, 0]
        means.add(features[few], labels[few])
        out[f"{key}_accuracy_given_back"] = float(
            (nearest(means.means, means.counts, asked[own]) == truth[own]).double().mean()
        )
    return out


def _judge(name: str, runs: Sequence[Mapping[str, float]]) -> list[Check]:
    ahead = [a - b for a, b in zip(column(runs, f"{name}_nmc"), column(runs, f"{name}_sequential"), strict=True)]
    kinds = ("examples", "known_class", "new_class")
    worst = max(max(column(runs, f"{name}_{kind}_difference")) for kind in kinds)
    same = min(min(column(runs, f"{name}_{kind}_same_answers")) for kind in kinds)
    back = mean(runs, f"{name}_known_class_accuracy_given_back")
    return [
        Check(
            f"{name}: the average incremental accuracy of class means is {AHEAD:.0%} or more above training in "
            "sequence, at every seed",
            min(ahead) >= AHEAD,
            _why(min(ahead) >= AHEAD)
            + f"{mean(runs, f'{name}_nmc'):.1%} against {mean(runs, f'{name}_sequential'):.1%} (after the last task "
            f"{mean(runs, f'{name}_nmc_last'):.1%} and {mean(runs, f'{name}_sequential_last'):.1%}); means of raw "
            f"pixels {mean(runs, f'{name}_raw'):.1%}, of an encoder that was never trained "
            f"{mean(runs, f'{name}_untrained'):.1%}",
        ),
        Check(
            f"{name}: deletion of a tenth of the examples or of a class equals never having added them",
            worst <= EXACT and same >= 1,
            f"means differ by at most {worst:.1e} in float64, {same:.2%} of the answers are the same; of the head "
            f"alone: {SHOTS} examples of a class that the encoder was trained on bring back {back:.0%} of it",
        ),
    ]


def _why(holds: bool) -> str:
    if holds:
        return ""
    return (
        "likely reason: features of an encoder trained here on five classes say little about the others, where the "
        "paper's were pretrained on millions of images; "
    )
