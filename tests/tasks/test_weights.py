"""Weights that cannot be used are refused before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge.errors import BadInput
from expunge.tasks.weights import check_weights


def write(file: Path, **tensors: torch.Tensor) -> Path:
    file.parent.mkdir(exist_ok=True)
    save_file(tensors or {"a": torch.ones(4), "b": torch.arange(3)}, file, metadata={"format": "pt"})
    return file


def said(folder: Path) -> list[str]:
    with pytest.raises(BadInput) as error:
        check_weights(folder)
    return [str(problem) for problem in error.value.problems]


def test_sound_weights_pass(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", a=torch.ones(3, dtype=torch.bfloat16), b=torch.ones(2, dtype=torch.int64),
          none=torch.ones(0))  # fmt: skip
    check_weights(tmp_path)
    check_weights("somebody/something")  # a name on the hub: known when it is loaded


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "model.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    (found,) = said(tmp_path)
    assert found.startswith(f"{file}: is damaged or cut off")
    file.write_bytes(b"no safetensors at all")
    assert "is damaged or cut off" in said(tmp_path)[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 517, 999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
def test_values_that_are_no_numbers_are_named_with_their_tensor(
    tmp_path: Path, place: int, value: float, dtype: torch.dtype
) -> None:
    broken = torch.linspace(-1, 1, 1000)
    broken[place] = value
    broken = broken.to(dtype)
    file = write(tmp_path / "model.safetensors", fine=torch.ones(2), broken=broken)
    (found,) = said(tmp_path)
    assert found.startswith(f"{file}: has NaN or infinite values in 1 of 2 tensor(s), such as broken -> give")


def test_everything_wrong_with_several_files_comes_at_once(tmp_path: Path) -> None:
    write(tmp_path / "model-1.safetensors", a=torch.tensor([float("nan")]))
    cut = write(tmp_path / "model-2.safetensors")
    cut.write_bytes(cut.read_bytes()[:20])
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert [
        part in found for part, found in zip(("model-3.safetensors", "NaN", "cut off"), said(tmp_path), strict=True)
    ]
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert any("index.json: cannot be read" in found for found in said(tmp_path))


def test_weights_of_parts_in_folders_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors")
    write(tmp_path / "assistant" / "adapter_model.safetensors", a=torch.tensor([float("inf")]))
    assert "assistant" in said(tmp_path)[0]


def test_pickled_weights_and_none_at_all_are_told_apart(tmp_path: Path) -> None:
    assert said(tmp_path) == [f"model {tmp_path}: holds no weights -> give a folder with *.safetensors"]
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    assert "holds its weights in pytorch_model.bin, which can run code" in said(tmp_path)[0]
