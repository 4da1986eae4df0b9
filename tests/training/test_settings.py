"""Settings are checked before work starts."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from expunge.training.settings import LoraSettings, StopSettings, TrainSettings, inner_settings, wrong_settings


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


def said(model: Any, **values: Any) -> list[str]:
    with pytest.raises(ValidationError) as error:
        model(**values)
    return [str(problem) for problem in wrong_settings(model, error.value, "training: ")]


def test_what_is_wrong_is_said_once_with_what_the_setting_is() -> None:
    assert said(TrainSettings, epochs=0, lora={"rank": "many"}) == [
        "training: epochs: input should be greater than 0 (given: 0) -> change it (passes over the anchor set "
        "(the forget set, except for retraining))",
        "training: lora.rank: input should be a valid integer, unable to parse string as an integer (given: 'many') "
        "-> change it (rank of the adapters)",
    ]
    # A value that is none of several kinds is one mistake, and so is an entry of a list.
    (target,) = said(TrainSettings, stop={"forget_target": "retain"})
    assert target.startswith("training: stop.forget_target: input should be 'none', 'oracle' or 'holdout', or input")
    (tracker,) = said(TrainSettings, trackers=["excel"])
    assert tracker.startswith("training: trackers: input should be 'tensorboard' or 'wandb' (given: 'excel')")


def test_names_that_there_are_not_are_met_with_near_ones_at_their_own_level() -> None:
    assert said(TrainSettings, stop={"evry": 4}) == [
        "training: stop.evry: is not a setting -> did you mean stop.every?"
    ]
    assert said(TrainSettings, epoch=4) == ["training: epoch: is not a setting -> did you mean epochs?"]
    assert set(inner_settings(TrainSettings, "lora")) == {"rank", "alpha", "dropout", "targets"}
    assert not inner_settings(TrainSettings, "epochs")
    assert not inner_settings(TrainSettings, "unheard-of")
