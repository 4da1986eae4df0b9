"""A random forget set: what every other choice is compared with."""

from __future__ import annotations

from typing import ClassVar

from datasets import Dataset

from expunge.data.scenarios import luck
from expunge.forget_sets.base import Choice, ForgetSetSelector, Heard, Hold, Units
from expunge.tasks.base import Task


class Random(ForgetSetSelector):
    """Units drawn by (seed, name), so that the order of the training set does not matter.

    With ``unit=example``, the same examples as ``expunge.data.scenarios.random_examples`` draws, except that no class
    loses its last example.
    """

    id = "random"
    like_unseen: ClassVar[bool] = True
    title = "units at random, as a control"
    paper = "Jia et al. 2023, Model Sparsity Can Simplify Machine Unlearning, arXiv:2304.04934 (random data forgetting)"

    def choose(self, train: Dataset, units: Units, task: Task | None, seed: int, hold: Hold, heard: Heard) -> Choice:
        """Draw."""
        return Choice([-luck(seed, name) for name in units.names])
