"""Checkpoints are complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from expunge.errors import BadInput
from expunge.training import checkpoint
from expunge.training.checkpoint import (
    gather_state,
    latest_checkpoint,
    remove_older,
    restore_state,
    trained_weights,
    write_checkpoint,
)


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight.a": torch.full((3,), value)}


def test_the_newest_is_read_and_older_ones_go_when_told(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 200):
        write_checkpoint(tmp_path, state(step), {"step": step})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1] == {"step": 200}
    assert torch.equal(found[0]["weight.a"], state(200)["weight.a"])
    earlier = latest_checkpoint(tmp_path, before=200)
    assert earlier is not None
    assert earlier[1]["step"] == 10
    assert latest_checkpoint(tmp_path, before=5) is None
    remove_older(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000200"]


@pytest.mark.parametrize("moment", ["save_file", "fsync", "replace"])
def test_a_crash_while_writing_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    write_checkpoint(tmp_path, state(1), {"step": 1})

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint if moment == "save_file" else os, moment, crash)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(tmp_path, state(2), {"step": 2})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1


def test_what_a_killed_process_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, state(1), {"step": 1})
    half = tmp_path / ".writing-abc"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["step"] == 1
    write_checkpoint(tmp_path, state(2), {"step": 2})
    assert not half.exists()


@pytest.mark.parametrize("file", ["state.safetensors", "facts.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_named_with_what_to_do(tmp_path: Path, file: str, damage: str) -> None:
    write_checkpoint(tmp_path, state(1), {"step": 1})
    path = tmp_path / "step-00000001" / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadInput, match=r"step-00000001: is damaged.*delete that folder"):
        latest_checkpoint(tmp_path)


def test_a_full_disk_is_named_and_the_previous_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, state(1), {"step": 1})
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match="goes on from the last complete checkpoint, which is still there"):
        write_checkpoint(tmp_path, state(2), {"step": 2})
    assert json.loads((tmp_path / "step-00000001" / "facts.json").read_text()) == {"step": 1}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.arange(4.0)[None]).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_restored_state_continues_bitwise() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(4, 2), nn.Linear(4, 2)
    one.bias.requires_grad_(False)
    other.bias.requires_grad_(False)
    first = torch.optim.AdamW(one.parameters(), fused=True)
    for _ in range(3):
        step(one, first)
    saved = gather_state(one, first)
    assert set(saved) == {"weight.weight", "step.weight", "exp_avg.weight", "exp_avg_sq.weight"}
    assert set(trained_weights(one)) == {"weight"}
    second = torch.optim.AdamW(other.parameters(), fused=True)
    restore_state(other, second, saved)
    with torch.no_grad():
        other.bias.copy_(one.bias)
    kept = {name: value.clone() for name, value in saved.items()}
    for _ in range(2):
        step(one, first)
        step(other, second)
    assert torch.equal(one.weight, other.weight)
    assert all(torch.equal(saved[name], value) for name, value in kept.items()), "a copy, not the weights themselves"
