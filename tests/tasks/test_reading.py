"""How examples are read is known from a folder without its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.tasks.predictor import Predictor
from expunge.tasks.reading import reading_of


@pytest.mark.parametrize("name", ["resnet", "module", "bert", "table", "table-regressor"])
def test_without_weights_it_reads_as_the_model_does(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], tmp_path: Path, name: str
) -> None:
    task = tiny_predictor(name)
    task.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    reading, examples = reading_of(tmp_path), tiny_rows(name, range(5))
    one, other = reading.encode(examples), task.encode(examples)
    assert reading.kind == task.kind
    assert [one.content(i) for i in range(5)] == [other.content(i) for i in range(5)]


def test_options_win_over_the_folder(tiny_predictor: Callable[..., Predictor], tmp_path: Path) -> None:
    tiny_predictor("resnet", augment="flip").save(tmp_path / "a")
    assert reading_of(tmp_path / "a").inputs.varies
    assert not reading_of(tmp_path / "a", augment="none").inputs.varies
    tiny_predictor("bert").save(tmp_path / "b")
    assert reading_of(tmp_path / "b", max_length=7).inputs.settings()["max_length"] == 7


def test_inputs_and_labels_are_wrong_at_once(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    rows = tiny_rows("table", range(3)).to_list()
    rows[0]["height"], rows[1]["label"] = float("nan"), "dog"
    with pytest.raises(BadInput) as error:
        tiny_predictor("table").encode(Dataset.from_list(rows))
    assert len(error.value.problems) == 2
    assert torch.is_grad_enabled()
