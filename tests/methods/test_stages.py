"""Stages follow each other on the same weights, and a killed run goes on in the stage where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest

SETTINGS = {"passes": 3, "max_passes": 2, "batch_size": 4, "learning_rate": 1e-3, "weight_decay": 0.0}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def test_the_account_covers_all_stages(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 22)))
    done = unlearn(tiny_predictor("table"), request, "scrub", settings=SETTINGS)
    assert done.training is not None
    # 2 steps per pass over 6, 3 per pass over 12.
    assert done.training.steps == 2 * 2 + 3 * 3
    assert [r["step"] for r in done.training.history] == list(range(1, 14))
    assert done.training.kept_step == 13
    assert done.config["stages"] == ["forget", "retain", "forget", "retain", "retain"]


@pytest.mark.parametrize("more", [{}, {"lora.rank": 2}])
@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_a_killed_run_ends_with_the_same_bytes(
    tiny_predictor: Any, tiny_rows: Any, tmp_path: Path, stop_at: int, more: dict[str, Any]
) -> None:
    request = DeletionRequest(tiny_rows("resnet", range(6)), tiny_rows("resnet", range(10, 22)))
    settings = {**SETTINGS, **more, "checkpoint_every": 1}
    expected = weights(unlearn(tiny_predictor("resnet"), request, "scrub", settings=settings).model)
    seen = 0

    def kill(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(tiny_predictor("resnet"), request, "scrub", settings=settings, folder=tmp_path, progress=kill)
    again = weights(unlearn(tiny_predictor("resnet"), request, "scrub", settings=settings, folder=tmp_path).model)
    assert set(again) == set(expected)
    assert all(torch.equal(again[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("settings", "forget"), [({"learning_rate": 1e-2}, range(6)), ({"passes": 4}, range(6)), ({}, range(7))]
)
def test_stages_of_another_run_are_not_taken_for_this_one(
    tiny_predictor: Any, tiny_rows: Any, tmp_path: Path, settings: dict[str, Any], forget: range
) -> None:
    kept = tiny_rows("table", range(10, 22))
    one, other = DeletionRequest(tiny_rows("table", range(6)), kept), DeletionRequest(tiny_rows("table", forget), kept)
    unlearn(tiny_predictor("table"), one, "scrub", settings=SETTINGS, folder=tmp_path)
    with pytest.raises(BadInput, match="of a run with other settings, other examples or another model"):
        unlearn(tiny_predictor("table"), other, "scrub", settings={**SETTINGS, **settings}, folder=tmp_path)


def test_a_finished_stage_keeps_no_checkpoints(tiny_predictor: Any, tiny_rows: Any, tmp_path: Path) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 22)))
    unlearn(tiny_predictor("table"), request, "scrub", settings={**SETTINGS, "checkpoint_every": 1}, folder=tmp_path)
    assert len(list(tmp_path.glob("stages/*/log.jsonl"))) == 5
    assert not list(tmp_path.rglob("checkpoints"))


def test_damaged_weights_of_a_stage_are_named(tiny_predictor: Any, tiny_rows: Any, tmp_path: Path) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 22)))
    unlearn(tiny_predictor("table"), request, "scrub", settings=SETTINGS, folder=tmp_path)
    file = next(tmp_path.glob("stages/*/done.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BadInput, match="is damaged"):
        unlearn(tiny_predictor("table"), request, "scrub", settings=SETTINGS, folder=tmp_path)
