"""Settings are checked before work starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from expunge.training.settings import LoraSettings, StopSettings, TrainSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"warmup": -0.1},
        {"warmup": 1.5},
        {"warmup": "step"},
        {"schedule": "cubic"},
        {"clip_norm": 0},
        {"precision": "fp8"},
        {"seed": -1},
        {"unknown": 1},
        {"stop": {"every": -1}},
        {"stop": {"forget_target": "retain"}},
        {"lora": {"rank": 0}},
        {"lora": {"dropout": 1.0}},
        {"trackers": ["excel"]},
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainSettings(**wrong)


def test_settings_survive_json_and_cannot_change() -> None:
    chosen = TrainSettings(lora=LoraSettings(rank=4), stop=StopSettings(every=2, forget_target=3.5), warmup=0.1)
    assert TrainSettings(**chosen.model_dump(mode="json")) == chosen
    with pytest.raises(ValidationError):
        chosen.epochs = 3  # type: ignore[misc]


def test_every_field_says_what_it_is() -> None:
    for model in (TrainSettings, StopSettings, LoraSettings):
        for name, field in model.model_fields.items():
            assert field.description or name == "stop", f"{model.__name__}.{name}"
