"""What holds for every selector: it says what it is, and its choice depends on the seed and the content alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
from datasets import Dataset

from expunge.forget_sets.base import FORGET_SETS, ForgetSetSelector
from expunge.forget_sets.select import select_forget_set
from expunge.tasks.predictor import Predictor

ALL = FORGET_SETS.classes()
each = pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.id)
SETTINGS: dict[str, dict[str, Any]] = {
    "class": {"labels": "1"}, "worst_case": {"iterations": 2, "unlearn_epochs": 1},
    "easiest": {"iterations": 2, "unlearn_epochs": 1},
}  # fmt: skip


@each
def test_it_says_what_it_is(kind: type[ForgetSetSelector]) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.id)
    assert len(kind.title) > 10
    assert re.search(r"(19|20)\d\d", kind.paper)
    assert kind.__doc__
    assert all(field.description for field in kind.Config.model_fields.values())
    kind.Config()


@each
def test_same_seed_same_choice(kind: type[ForgetSetSelector], examples: Dataset, learnt: Predictor) -> None:
    settings = SETTINGS.get(kind.id, {})
    first, again = (select_forget_set(examples, kind.id, learnt, settings=settings, seed=2) for _ in range(2))
    assert first.request.fingerprint == again.request.fingerprint
    assert first.scores == again.scores
    assert first.request.retain is not None
    assert len(first.request.forget) + len(first.request.retain) == len(examples)
