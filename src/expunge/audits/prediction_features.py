"""What membership attacks on classifiers look at: five features of a prediction and its true class.

The values are the field's own, unscaled. Entropies are in nats; a probability of 0 counts as 1e-30 inside a logarithm.

Source: Song & Mittal 2021, Systematic Evaluation of Privacy Risks of Machine Learning Models (arXiv:2003.10595).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.tasks.predictions import Predictions

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

# Feature -> what a report calls it.
FEATURES: Mapping[str, str] = {
    "correctness": "correctness",
    "confidence": "confidence in the true class",
    "entropy": "entropy",
    "modified_entropy": "modified entropy",
    "probability": "all probabilities",
}
_LEAST = 1e-30


def entropy(probabilities: Array) -> Array:
    """Return ``-sum_c p_c log p_c``.

    Args:
        probabilities: (n, C), rows that sum to 1.

    Returns:
        (n,) in nats.
    """
    return np.asarray(-(probabilities * np.log(np.maximum(probabilities, _LEAST))).sum(-1))


def modified_entropy(probabilities: Array, labels: Labels) -> Array:
    """Return ``-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)``: low where the model is sure and right.

    Args:
        probabilities: (n, C).
        labels: (n,) true classes.

    Returns:
        (n,) in nats. Unlike the entropy it tells sure and right from sure and wrong.
    """
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    others = probabilities * np.log(np.maximum(1 - probabilities, _LEAST))
    others[rows, labels] = 0.0
    return np.asarray(-(1 - own) * np.log(np.maximum(own, _LEAST)) - others.sum(-1))


def released_modified_entropy(probabilities: Array, labels: Labels) -> Array:
    """Return what the reference implementation computes in the place of the modified entropy (for parity only).

    It takes ``log p`` where ``log(1 - p)`` is meant, and turns every column whose class occurs among the labels of
    the batch, in all of its rows. So a value depends on the labels of the other examples. Probabilities are float32,
    and only those that are 0 in it count as 1e-30.

    Args:
        probabilities: (n, C).
        labels: (n,).
    """
    single = probabilities.astype(np.float32).astype(np.float64)
    weights, present = single.copy(), np.unique(labels)
    weights[:, present] = 1 - weights[:, present]
    return np.asarray(-(weights * np.log(np.where(single > 0, single, _LEAST))).sum(-1))


def prediction_features(predictions: Predictions, parity: bool = False) -> dict[str, Array]:
    """Return the five features.

    Args:
        predictions: of n examples by a classifier.
        parity: take the modified entropy as the reference implementation does, see ``released_modified_entropy``.

    Returns:
        Name of ``FEATURES`` -> (n, k), k = 1 for all but ``probability`` (k = C).
    """
    return features_of(predictions.probabilities, np.asarray(predictions.targets, dtype=np.int64), parity)


def features_of(probabilities: Array, labels: Labels, parity: bool = False) -> dict[str, Array]:
    """Return the five features of (n, C) probabilities with (n,) true classes; see ``prediction_features``."""
    p = probabilities
    modified: Any = released_modified_entropy if parity else modified_entropy
    return {
        "correctness": (p.argmax(-1) == labels).astype(np.float64)[:, None],
        "confidence": p[np.arange(len(labels)), labels][:, None],
        "entropy": entropy(p)[:, None],
        "modified_entropy": modified(p, labels)[:, None],
        "probability": np.asarray(p),
    }
