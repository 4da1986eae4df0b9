from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.classification.nearest_mean import BELOW, ClassMeans, features_of
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest


@given(seed=st.integers(0, 300), kept=st.integers(3, 30), gone=st.integers(1, 30))
def test_deleting_is_never_having_added(seed: int, kept: int, gone: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(kept + gone, 5, generator=generator) * 10
    labels = torch.randint(0, 3, (kept + gone,), generator=generator)
    once, twice = ClassMeans(3, 5), ClassMeans(3, 5)
    once.add(features[:kept], labels[:kept])
    twice.add(features, labels)
    twice.remove(features[kept:], labels[kept:])
    assert torch.equal(once.counts, twice.counts)
    torch.testing.assert_close(once.means, twice.means, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(once.variance, twice.variance, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_head_scores_the_nearest_mean_highest(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 4
    features = torch.randn(40, 6, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 6)
    built = ClassMeans(4, 6)
    built.add(features, labels)
    weight, bias = built.head(metric)
    points = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    scores = points @ weight.T + bias
    if metric == "euclidean":
        nearest = torch.cdist(points, built.means).argmin(-1)
    else:
        nearest = torch.nn.functional.cosine_similarity(points[:, None], built.means[None], dim=-1).argmax(-1)
    assert torch.equal(scores.argmax(-1), nearest)


def test_the_variance_is_that_within_the_classes() -> None:
    built = ClassMeans(2, 1)
    built.add(torch.tensor([[0.0], [2.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1]))
    assert built.variance == pytest.approx((1 + 1 + 4 + 4) / 4)


@pytest.mark.parametrize("name", ["table", "resnet", "bert"])
def test_the_new_head_is_that_of_the_retain_set(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    request = DeletionRequest(tiny_rows(name, range(6)), tiny_rows(name, range(10, 30)))
    done = unlearn(task, request, "nearest_mean")
    assert done.removal_level == "approximate"
    built = ClassMeans(3, task.head_module().in_features)
    built.add(*features_of(task, task.encode(request.retain)))
    weight, bias = built.head("euclidean")
    torch.testing.assert_close(done.model.head_module().weight.detach().double(), weight, atol=1e-4, rtol=1e-5)  # type: ignore[union-attr]
    torch.testing.assert_close(done.model.head_module().bias.detach().double(), bias, atol=1e-3, rtol=1e-5)  # type: ignore[union-attr]
    unmoved = {n: p for n, p in task.named_parameters() if n not in task.head_parameters()}
    new = dict(done.model.named_parameters())
    assert all(torch.equal(new[n], p) for n, p in unmoved.items())


def test_a_class_that_is_gone_is_never_predicted(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    everything = tiny_rows("table", range(30))
    bees = everything.filter(lambda row: row["label"] == "bee")
    others = everything.filter(lambda row: row["label"] != "bee")
    settings = {"clean_features": True}
    done = unlearn(task, DeletionRequest(bees, others, scenario="class"), "nearest_mean", settings=settings)
    assert done.removal_level == "exact"
    assert done.config["found"]["examples_per_class"][1] == 0
    scores = done.model.statistics(done.model.encode(everything)).logits
    assert (scores.argmax(-1) != 1).all()
    assert (scores.max(-1).values - scores[:, 1]).min() >= 0.99 * BELOW


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_class_that_is_gone_scores_below_the_others_far_from_all_means(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    features = 0.01 * torch.randn(30, 2, generator=generator) + 10 * torch.eye(3, 2)[torch.arange(30) % 3]
    labels, gone = torch.arange(30) % 3, torch.arange(30) % 3 == 1
    built = ClassMeans(3, 2)
    built.add(features, labels)
    built.remove(features[gone], labels[gone])
    weight, bias = (part.float() for part in built.head(metric))
    points = 1000 * torch.randn(500, 2, generator=generator)
    scores = torch.cat([points, points / 1000, points[:1] * 0]) @ weight.T + bias
    assert (scores.argmax(-1) != 1).all()
    assert not torch.equal(scores[:, 1], scores[:, 0])


def test_a_head_without_a_bias_is_refused(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("gpt2-score", range(3)), tiny_rows("gpt2-score", range(10, 16)))
    with pytest.raises(BadInput, match="linear head with a bias"):
        unlearn(tiny_predictor("gpt2-score"), request, "nearest_mean")
