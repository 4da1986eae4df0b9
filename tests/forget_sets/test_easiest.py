from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from expunge.forget_sets.select import select_forget_set
from expunge.tasks.predictor import Predictor


@pytest.mark.parametrize("more", [{}, {"form": "unrolled", "unlearn_rate": 0.3}])
def test_what_was_only_learnt_by_heart_is_the_easiest_to_forget(
    more: dict[str, Any], examples: Dataset, learnt: Predictor
) -> None:
    settings = {"iterations": 6, "unlearn_epochs": 5, "unlearn_rate": 5e-3, "count": 12, **more}
    found = select_forget_set(examples, "easiest", learnt, settings=settings)
    wrong = [not plain for plain in found.request.forget["plain"]]
    assert sum(wrong) >= 9, "most of what is found has a wrong label; a fifth of all have"
    assert found.history[-1]["chosen_loss"] > found.history[-1]["mean_loss"]
