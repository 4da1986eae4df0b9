from __future__ import annotations

import numpy as np
import pytest

from expunge.audits.regression.error_mia import ErrorMia
from expunge.tasks.predictions import Predictions


def test_small_errors_are_members_and_the_unit_does_not_matter() -> None:
    luck = np.random.default_rng(0)

    def off_by(errors: np.ndarray, unit: float) -> Predictions:
        ids = [str(k) for k in range(len(errors))]
        return Predictions(ids, errors[:, None], np.zeros((len(ids), 1)), centre=(5.0,), scale=(unit,))

    for unit in (1.0, 3.0):
        known, new = off_by(luck.normal(0, 0.05, 80), unit), off_by(luck.normal(0, 0.05, 80) + 2.0, unit)
        called = ErrorMia().called(known, new, off_by(np.array([0.01, -0.02, 2.0, -2.1]), unit), ("absolute_error",))[
            "absolute_error"
        ]
        assert called.tolist() == [True, True, False, False]
    assert ErrorMia.reports == "member"
    assert ErrorMia().own_accuracy(known, new, 0).mean() == pytest.approx(1.0)
