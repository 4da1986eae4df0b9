"""Concepts in a classifier's features: activation vectors, a post-hoc bottleneck, and where in an image they are.

A concept is a direction in what the last linear layer is given. Where it is not known from annotations, concepts are
clusters of image windows, each blown up to the size of an image.

Source: Kim et al. 2018 (concept activation vectors, arXiv:1711.11279); Yuksekgonul et al. 2023 (post-hoc concept
bottlenecks, arXiv:2205.15480); Ghorbani et al. 2019 (clusters of image parts as concepts, arXiv:1902.03129).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import BadInput, Problem
from expunge.tasks.attribution import integrated_gradients
from expunge.tasks.heads import calls_of, read_rows
from expunge.tasks.predictor import Predictor

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Concepts:
    """Concept activation vectors: ``m_k(e) = (v_k . e + b_k) / |v_k|`` says how much of concept k is in features e.

    Attributes:
        names: K names.
        vectors: (K, H).
        intercepts: (K,).
    """

    names: tuple[str, ...]
    vectors: Array
    intercepts: Array

    def margins(self, features: Array) -> Array:
        """(N, K) signed distances of (N, H) features from the concepts' boundaries."""
        lengths = np.linalg.norm(self.vectors, axis=1)
        return np.asarray((features @ self.vectors.T + self.intercepts) / lengths)


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """Classes predicted from concepts alone.

    Attributes:
        concepts: the concepts.
        weights: (C, K) what one standard deviation of a concept's margin adds to a class's score.
        accuracy: share of the examples it was made on that it predicts right.
    """

    concepts: Concepts
    weights: Array
    accuracy: float

    def top(self, label: int, count: int) -> list[int]:
        """Return the concepts that speak most for a class, the strongest first."""
        return [int(k) for k in np.argsort(-self.weights[label], kind="stable")[:count]]


def concept_vector(positive: Array, negative: Array, regularisation: float = 0.1) -> tuple[Array, float]:
    """Separate features with a concept from features without by a linear support vector machine.

    Args:
        positive, negative: (P, H) and (Q, H).
        regularisation: its constant C.

    Returns:
        (H,) coefficients and the intercept.
    """
    from sklearn.svm import SVC

    data = np.concatenate([positive, negative])
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    fitted = SVC(kernel="linear", C=regularisation, class_weight="balanced").fit(data, labels)
    return np.asarray(fitted.coef_[0], dtype=np.float64), float(fitted.intercept_[0])


def annotated_concepts(features: Array, marks: Sequence[Sequence[str]], regularisation: float = 0.1) -> Concepts:
    """Return the concepts that examples are marked with, one vector each: marked against all others.

    Args:
        features: (N, H).
        marks: which concepts each of the N examples has.
        regularisation: of the support vector machines.

    Raises:
        BadInput: no concept that some examples have and others have not.
    """
    known = sorted({name for names in marks for name in names})
    found = [(name, np.array([name in names for names in marks])) for name in known]
    found = [(name, has) for name, has in found if 0 < has.sum() < len(has)]
    if not found:
        what = "no concept is marked at some examples and missing at others"
        raise BadInput(Problem("concepts", what, "mark what only some of the examples have"))
    vectors = [concept_vector(features[has], features[~has], regularisation) for _, has in found]
    return Concepts(
        tuple(name for name, _ in found), np.stack([v for v, _ in vectors]), np.array([b for _, b in vectors])
    )


def clustered_concepts(features: Array, count: int, seed: int, regularisation: float = 0.1) -> Concepts:
    """Return concepts found in unmarked features: k-means clusters, each separated from all others.

    Args:
        features: (N, H) of image windows.
        count: how many clusters; at most N.
        seed: of their first centres.
        regularisation: of the support vector machines.
    """
    from sklearn.cluster import KMeans

    scale = features.std(0) + 1e-8
    assigned = KMeans(count, n_init=4, random_state=seed).fit_predict(features / scale)
    names, vectors, intercepts = [], [], []
    for k in range(count):
        inside = assigned == k
        if 0 < inside.sum() < len(features):
            vector, intercept = concept_vector(features[inside], features[~inside], regularisation)
            names.append(f"cluster {k}")
            vectors.append(vector)
            intercepts.append(intercept)
    return Concepts(tuple(names), np.stack(vectors), np.array(intercepts))


def fit_bottleneck(
    concepts: Concepts,
    features: Array,
    labels: NDArray[np.int64],
    classes: int,
    *,
    strength: float = 1e-5,
    l1_ratio: float = 0.99,
    seed: int = 0,
) -> Bottleneck:
    """Fit an elastic-net logistic regression from concept margins to classes.

    Margins are standardised first, so that weights of different concepts can be compared.

    Args:
        concepts: the concepts.
        features: (N, H).
        labels: (N,) classes.
        classes: C; classes without an example get zero weights.
        strength: weight of the penalty (scikit-learn's alpha; released code calls it lam).
        l1_ratio: share of the L1 norm in it.
        seed: of the order of examples.
    """
    from sklearn.linear_model import SGDClassifier

    margins = concepts.margins(features)
    scaled = (margins - margins.mean(0)) / (margins.std(0) + 1e-8)
    fitted = SGDClassifier(
        loss="log_loss", penalty="elasticnet", alpha=strength, l1_ratio=l1_ratio, max_iter=10_000, random_state=seed
    ).fit(scaled, labels)
    weights = np.zeros((classes, len(concepts.names)))
    found = fitted.coef_ if len(fitted.classes_) > 2 else np.concatenate([-fitted.coef_, fitted.coef_])
    weights[fitted.classes_] = found
    return Bottleneck(concepts, weights, float(fitted.score(scaled, labels)))


# ---- images ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Square windows of an image.

    Attributes:
        height, width: of the image.
        size: edge of a window, in pixels.
        corners: (top, left) of each.
    """

    height: int
    width: int
    size: int
    corners: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, height: int, width: int, share: float, stride: float) -> Windows:
        """Return windows on a regular grid that reaches both edges.

        Args:
            height, width: of the image.
            share: edge of a window, as a share of the shorter edge of the image; at least one pixel.
            stride: from window to window, in the same unit; at least one pixel.
        """
        short = min(height, width)
        size, step = max(1, round(share * short)), max(1, round(stride * short))
        tops, lefts = (sorted({*range(0, edge - size + 1, step), edge - size}) for edge in (height, width))
        return cls(height, width, size, tuple((top, left) for top in tops for left in lefts))

    def crops(self, pixels: Tensor) -> Tensor:
        """(N, P, C, H, W) the windows of (N, C, H, W) images, each blown up to the size of the image."""
        n, channels = pixels.shape[:2]
        cut = torch.stack([pixels[:, :, t : t + self.size, x : x + self.size] for t, x in self.corners], 1)
        large = F.interpolate(cut.flatten(0, 1), (self.height, self.width), mode="bilinear", align_corners=False)
        return large.reshape(n, len(self.corners), channels, self.height, self.width)

    def sums(self, values: Tensor) -> Tensor:
        """(N, P) sums of (N, H, W) values over each window."""
        return torch.stack([values[:, t : t + self.size, x : x + self.size].sum((1, 2)) for t, x in self.corners], 1)


def image_features(task: Predictor, pixels: Tensor) -> Tensor:
    """Return (B, H) what the last linear layer is given for (B, C, H, W) normalised images; gradients flow.

    Raises:
        BadInput: the model has no single linear layer whose input could be read.
    """
    with calls_of(task.head_module()) as seen:
        logits = task.predict({"pixel_values": pixels})
    rows = read_rows(seen, logits)
    if rows is None:
        what = "has no single linear layer whose input could be read"
        raise BadInput(Problem("model", what, "give a model with a linear head"))
    task.cost.forwards += 1
    task.cost.sequences += len(pixels)
    return rows.float()


def features_in_parts(task: Predictor, pixels: Tensor) -> Tensor:
    """Return ``image_features`` without gradients, in batches that bound memory."""
    with torch.no_grad():
        return torch.cat([image_features(task, part) for part in pixels.split(task.tokens_per_forward)])


def window_features(task: Predictor, pixels: Tensor, windows: Windows) -> Tensor:
    """(N, P, H) features of the windows of (N, C, H, W) normalised images."""
    each = max(1, task.tokens_per_forward // len(windows.corners))
    parts = [features_in_parts(task, windows.crops(part).flatten(0, 1)) for part in pixels.split(each)]
    return torch.cat(parts).reshape(len(pixels), len(windows.corners), -1)


def window_cosines(features: Tensor, vector: Tensor) -> Tensor:
    """(N, P) cosine of (N, P, H) features with a concept's (H,) vector."""
    return F.cosine_similarity(features, vector.expand_as(features), dim=-1)


def window_contributions(
    task: Predictor, pixels: Tensor, baseline: Tensor, windows: Windows, vector: Tensor, steps: int
) -> Tensor:
    """(N, P) what the pixels of each window contribute to a concept's margin, by integrated gradients.

    Args:
        task: the model, in evaluation mode.
        pixels: (N, C, H, W) normalised images.
        baseline: (C, H, W), or what broadcasts to it, an image without the concept.
        windows: the windows.
        vector: (H,) of the concept; of length 1 for margins.
        steps: points on the path.
    """
    margin: Callable[[Tensor], Tensor] = lambda x: image_features(task, x) @ vector  # noqa: E731
    each = max(1, task.tokens_per_forward // 4)
    parts = [integrated_gradients(margin, part, baseline, steps=steps).values for part in pixels.split(each)]
    return windows.sums(torch.cat(parts).sum(1))
