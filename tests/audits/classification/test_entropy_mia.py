from __future__ import annotations

import numpy as np
import pytest

from expunge.audits.classification.entropy_mia import EntropyMia, regression_members
from expunge.tasks.predictions import Predictions


def test_low_numbers_of_few_members_are_found() -> None:
    """Balanced classes: 5 members among 200 are not drowned."""
    luck = np.random.default_rng(0)
    members, others = luck.normal(0.1, 0.05, 5), luck.normal(1.0, 0.3, 200)
    assert regression_members(members, others, np.array([0.1, 1.0])).tolist() == [True, False]
    with pytest.raises(ValueError, match="both kinds"):
        regression_members(members[:0], others, others)


def test_only_entropy_counts_and_not_the_label() -> None:
    luck = np.random.default_rng(1)

    def sure(edge: float, label: int) -> Predictions:
        logits = np.zeros((20, 3))
        logits[:, 0] = edge + 0.1 * luck.random(20)
        return Predictions([f"{k}" for k in range(20)], logits, np.full(20, label), classes=("a", "b", "c"))

    for label in (0, 2):
        called = EntropyMia().called(sure(5.0, 0), sure(0.5, 0), sure(5.0, label), ("entropy",))["entropy"]
        assert called.all()
