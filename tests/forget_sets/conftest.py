"""A small classifier that has learnt noisy examples by heart: some of them only because it saw them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Value

from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor


@functools.cache
def noisy(count: int = 90, seed: int = 0) -> Dataset:
    """Three classes of 4 x 4 images; ``plain`` says whether the label is the one that the image shows."""
    luck = np.random.default_rng(seed)
    shown = np.arange(count) % 3
    plain = luck.random(count) > 0.2
    label = np.where(plain, shown, (shown + 1) % 3)
    pixels = (0.25 * luck.standard_normal((count, 4, 4))).astype(np.float32)
    pixels[np.arange(count), shown] += 1
    rows = {"id": [f"n{seed}-{i}" for i in range(count)], "image": list(pixels), "label": [str(v) for v in label],
            "plain": plain.tolist()}  # fmt: skip
    kinds = {"id": Value("string"), "image": Array2D((4, 4), "float32"), "label": Value("string"),
             "plain": Value("bool")}  # fmt: skip
    return Dataset.from_dict(rows, features=Features(kinds))


@pytest.fixture(scope="session")
def examples() -> Dataset:
    """The training set."""
    return noisy()


@pytest.fixture(scope="session")
def learnt(examples: Dataset) -> Predictor:
    """A small network that fits all of it."""
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 16, "outputs": 3, "hidden": [48]})
    task = Predictor.of_images(factory.make(0), list("012"), factory=factory, channels=1)
    encoded = task.encode(examples)
    optimiser = torch.optim.Adam(task.model.parameters(), 1e-2)
    for _ in range(150):
        optimiser.zero_grad()
        task.statistics(encoded).mean_nll.mean().backward()
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    task.model.eval()
    return task
