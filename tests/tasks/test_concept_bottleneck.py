from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from expunge.errors import BadInput
from expunge.tasks.concept_bottleneck import (
    Concepts,
    Windows,
    annotated_concepts,
    clustered_concepts,
    concept_vector,
    fit_bottleneck,
    image_features,
    window_contributions,
    window_cosines,
    window_features,
)


def test_margins_are_distances_from_the_boundary() -> None:
    concepts = Concepts(("a",), np.array([[3.0, 4.0]]), np.array([-5.0]))
    # The line 3 x + 4 y = 5 is 1 from the origin; (3, 4) is 5 from it, so 4 beyond the line.
    np.testing.assert_allclose(concepts.margins(np.array([[0.0, 0.0], [3.0, 4.0]]))[:, 0], [-1.0, 4.0])


def test_a_vector_separates_what_it_was_made_of() -> None:
    luck = np.random.default_rng(0)
    positive, negative = luck.normal(1, 0.3, (40, 3)), luck.normal(-1, 0.3, (60, 3))
    vector, intercept = concept_vector(positive, negative)
    assert (positive @ vector + intercept > 0).all()
    assert (negative @ vector + intercept < 0).all()


def planted(n: int = 300) -> tuple[np.ndarray, np.ndarray, list[list[str]]]:
    """Features of three concepts, each of which makes a class of its own, and one that says nothing."""
    luck = np.random.default_rng(1)
    labels = np.arange(n) % 3
    noise_mark = luck.random(n) < 0.5
    features = luck.normal(0, 0.2, (n, 6))
    features[np.arange(n), labels] += 1
    features[noise_mark, 5] += 1
    marks = [[f"c{k}", *(["noise"] if m else [])] for k, m in zip(labels, noise_mark, strict=True)]
    return features, labels, marks


def test_the_bottleneck_ranks_the_planted_concept_first() -> None:
    features, labels, marks = planted()
    concepts = annotated_concepts(features, marks)
    assert concepts.names == ("c0", "c1", "c2", "noise")
    found = fit_bottleneck(concepts, features, labels, 4)
    assert found.accuracy > 0.98
    assert [found.top(c, 1) for c in range(3)] == [[0], [1], [2]]
    assert not found.weights[3].any(), "a class without examples has no concepts"


def test_two_classes_have_opposite_weights() -> None:
    features, labels, marks = planted()
    two = labels < 2
    kept = [names for names, inside in zip(marks, two, strict=True) if inside]
    found = fit_bottleneck(annotated_concepts(features[two], kept), features[two], labels[two], 2)
    np.testing.assert_allclose(found.weights[0], -found.weights[1])


def test_what_all_or_none_have_is_no_concept() -> None:
    with pytest.raises(BadInput, match="no concept is marked at some"):
        annotated_concepts(np.ones((2, 3)), [["a"], ["a"]])


def test_clusters_find_what_was_planted() -> None:
    features, labels, _ = planted()
    concepts = clustered_concepts(features[:, :3], 3, seed=0)
    best = concepts.margins(features[:, :3]).argmax(1)
    most = [int(np.bincount(best[labels == c]).argmax()) for c in range(3)]
    assert sorted(most) == [0, 1, 2]
    assert all((best[labels == c] == most[c]).mean() > 0.95 for c in range(3))


def test_windows_reach_both_edges_and_are_blown_up() -> None:
    windows = Windows.of(9, 7, share=0.43, stride=0.3)
    assert windows.size == 3
    assert {top for top, _ in windows.corners} == {0, 2, 4, 6}
    assert {left for _, left in windows.corners} == {0, 2, 4}
    pixels = torch.rand(2, 1, 9, 7)
    crops = windows.crops(pixels)
    k = windows.corners.index((4, 2))
    expected = F.interpolate(pixels[1:2, :, 4:7, 2:5], (9, 7), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(crops[1, k], expected)
    torch.testing.assert_close(windows.sums(pixels[:, 0])[1, k], pixels[1, 0, 4:7, 2:5].sum())


def test_places_follow_the_features(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    pixels = task.batch(task.encode(tiny_rows("resnet", range(3))))["pixel_values"]
    windows = Windows.of(8, 8, share=0.5, stride=0.25)
    found = window_features(task, pixels, windows)
    one = image_features(task, windows.crops(pixels)[1, 4:5]).detach()[0]
    torch.testing.assert_close(found[1, 4], one, rtol=1e-4, atol=1e-5)
    cosine = window_cosines(found, one)
    assert int(cosine[1].argmax()) == 4
    assert float(cosine[1, 4]) == pytest.approx(1, abs=1e-5)


def test_contributions_to_a_margin_add_up(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("module")
    task.model.eval()
    pixels = task.batch(task.encode(tiny_rows("module", range(3))))["pixel_values"]
    whole = Windows(8, 8, 8, ((0, 0),))
    torch.manual_seed(0)
    vector = F.normalize(torch.randn(12), dim=0)
    found = window_contributions(task, pixels, torch.zeros(3, 1, 1), whole, vector, steps=200)
    with torch.no_grad():
        rise = (image_features(task, pixels) - image_features(task, torch.zeros_like(pixels))) @ vector
    torch.testing.assert_close(found[:, 0], rise, rtol=2e-2, atol=2e-3)
