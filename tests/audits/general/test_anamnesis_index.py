from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from datasets import Dataset

from expunge.audits.general.anamnesis_index import AnamnesisIndex, anamnesis_index, level_of
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

SETTINGS = {"learning_rate": 1e-2, "batch_size": 16, "max_steps": 150, "repeats": 2}


def test_by_hand() -> None:
    assert anamnesis_index([2, 4], [6]) == 0.5
    for own, oracle in (([], [1]), ([1], []), ([1], [0, 0])):
        with pytest.raises(ValueError, match="above 0"):
            anamnesis_index(own, oracle)
    assert level_of(0.8, 0.05) == pytest.approx(0.76)
    assert level_of(-2.0, 0.05) == pytest.approx(-2.1)  # minus an error: 5 % more of it is allowed


def trained(model: Predictor, examples: Dataset, steps: int = 150) -> Predictor:
    encoded = model.encode(examples)
    optimiser = torch.optim.Adam(model.model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        model.statistics(encoded).nll.mean().backward()
        optimiser.step()
    return model


@pytest.mark.parametrize("name", ["table", "table-regressor"])
def test_what_is_still_there_is_relearned_faster_and_models_stay_as_they_are(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], name: str
) -> None:
    forget, retain = tiny_rows(name, range(0, 60, 3)), tiny_rows(name, [i for i in range(60) if i % 3])
    everything = Dataset.from_list([*forget.to_list(), *retain.to_list()])
    original = trained(tiny_predictor(name), everything)
    hidden = original.copy()
    with torch.no_grad():
        if name == "table":
            hidden.head_module().bias[0] -= 6.0
        else:
            hidden.head_module().bias -= 3.0
    models = {
        "unlearned": hidden,
        "original": original,
        "oracle": trained(tiny_predictor(name, 1), retain),
        "oracle-2": trained(tiny_predictor(name, 2), retain),
    }
    before = [p.clone() for model in models.values() for p in model.model.parameters()]
    config = AnamnesisIndex.Config(**SETTINGS, margin=0.2 if name == "table" else 0.5)
    found = run_one(AnamnesisIndex(config), Observations(models, DeletionRequest(forget, retain)))
    assert found.status == "measured", found.note
    own = found.estimates["unlearned"]
    assert found.estimates["original"]["relearn_time"].value == 0.0
    assert own["relearn_time"].value > 0
    if name == "table":  # a number is guessed from others like it, so that the oracle has little to relearn
        assert own["ain"].value < 1.0
        assert 0.3 < found.estimates["oracle"]["ain"].value < 3.0
    # In-place relearning would make the second oracle's time shrink: asked again, everything is the same.
    again = run_one(AnamnesisIndex(config), Observations(models, DeletionRequest(forget, retain)))
    assert again.estimates == found.estimates
    after = [p for model in models.values() for p in model.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_is_not_reached_has_no_value(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    forget, retain = tiny_rows("table", range(12)), tiny_rows("table", range(30, 42))
    original = trained(tiny_predictor("table"), forget)
    models = {"unlearned": tiny_predictor("table", 3), "original": original, "oracle": tiny_predictor("table", 4)}
    config = AnamnesisIndex.Config(max_steps=1, repeats=1, learning_rate=1e-6)
    found = run_one(AnamnesisIndex(config), Observations(models, DeletionRequest(forget, retain)))
    assert found.estimates["unlearned"]["ain"].value is None
    assert "not known again within 1 steps" in found.estimates["unlearned"]["ain"].note
    alone = run_one(AnamnesisIndex(config), Observations(models, DeletionRequest(forget)))
    assert alone.status == "no data"
