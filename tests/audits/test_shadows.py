from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from expunge.audits.observations import Observations
from expunge.audits.shadows import pool_of, said_by, shadow_answers
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor
from expunge.training.settings import TrainSettings

SHORT = TrainSettings(epochs=1, max_steps=1, batch_size=4, learning_rate=1e-3)


def looked_at(make: Callable[..., Predictor], rows: Callable[..., Dataset], name: str, scenario: str) -> Observations:
    forget, retain, holdout = (rows(name, numbers) for numbers in (range(0, 12, 3), range(1, 30, 3), range(30, 42)))
    return Observations({"unlearned": make(name)}, DeletionRequest(forget, retain, holdout, scenario=scenario))


@pytest.mark.parametrize(("scenario", "unseen"), [("examples", 12), ("class", 4)])
def test_unseen_examples_of_other_classes_say_nothing_of_membership(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], scenario: str, unseen: int
) -> None:
    seen = looked_at(tiny_predictor, tiny_rows, "table", scenario)
    pool = pool_of(seen)
    assert len(pool.roles["holdout"]) == unseen
    assert pool.ids == sorted([*pool.roles["forget"], *pool.roles["holdout"]])
    assert list(pool.examples["id"]) == list(pool.ids)
    said = said_by(seen, "unlearned", pool)
    found = {**_nll(seen, "forget"), **_nll(seen, "holdout")}
    assert pool.nll(said) == pytest.approx([found[i] for i in pool.ids])
    stacked = pool.nll(np.stack([said, 2 * said]))
    assert stacked == pytest.approx(np.stack([pool.nll(said), 2 * pool.nll(said)]))


def _nll(seen: Observations, role: str) -> dict[str, float]:
    found = seen.predictions("unlearned", role)
    return found.by_id(found.nll)


@pytest.mark.parametrize("name", ["resnet", "table-regressor"])
def test_shadows_are_kept_and_differ_by_their_half(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], name: str, tmp_path: Path
) -> None:
    seen = looked_at(tiny_predictor, tiny_rows, name, "examples")
    pool = pool_of(seen)
    inside = np.zeros((2, len(pool.ids)), dtype=bool)
    inside[0, ::2] = inside[1, 1::2] = True
    said = shadow_answers(seen, pool, inside, SHORT, folder=tmp_path)
    assert said.shape == (2, len(pool.ids), 1 if "regressor" in name else 3)
    assert not np.allclose(said[0], said[1])
    (kept,) = tmp_path.iterdir()
    for file in kept.iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace("-", ""), encoding="utf-8")
    again = shadow_answers(seen, pool, inside, SHORT, folder=tmp_path)
    assert again == pytest.approx(np.abs(said))  # what was kept is read, not trained again
    other = shadow_answers(seen, pool, inside, SHORT.model_copy(update={"batch_size": 8}), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert (other < 0).any() or "regressor" in name
