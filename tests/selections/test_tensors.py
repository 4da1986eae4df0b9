from __future__ import annotations

from typing import Any

from expunge.selections.tensors import Tensors, TensorsConfig


def test_parameters_are_named_by_pattern(make_task: Any, request_: Any) -> None:
    mask = Tensors(TensorsConfig(parameters=r"layers\.1\.mlp")).build(make_task(), request_, 0)
    assert mask
    assert all("layers.1.mlp" in name and part is None for name, part in mask.items())


def test_or_taken_from_the_end(make_task: Any, request_: Any) -> None:
    task = make_task()
    names = [name for name, _ in task.named_parameters()]
    assert list(Tensors(TensorsConfig(last=2)).build(task, request_, 0)) == names[-2:]
    assert list(Tensors(TensorsConfig()).build(task, request_, 0)) == names
