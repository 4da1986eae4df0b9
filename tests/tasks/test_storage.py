"""Model folders are complete or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.errors import BadInput
from expunge.tasks.storage import check_loading, replacing, stored_settings, write_settings

WEIGHTS = [torch.zeros(4)]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing(folder, WEIGHTS) as scratch:
        write_settings(scratch, {"task": "causal_lm", "round": 1})

    def fail() -> None:
        with replacing(folder, WEIGHTS) as scratch:
            write_settings(scratch, {"task": "causal_lm", "round": 2})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert stored_settings(folder)["round"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_new_model_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing(folder, WEIGHTS) as scratch:
        write_settings(scratch, {"task": "causal_lm"})
        (scratch / "part").mkdir()
        (scratch / "part" / "old.txt").write_text("old")
    with replacing(folder, WEIGHTS) as scratch:
        write_settings(scratch, {"task": "causal_lm"})
    assert [path.name for path in folder.iterdir()] == ["expunge.json"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="holds no model"), replacing(tmp_path, WEIGHTS):
        pass
    assert (tmp_path / "thesis.txt").is_file()


def test_a_disk_that_is_too_small_is_said_before_writing(tmp_path: Path) -> None:
    huge = torch.empty(10**15, device="meta")
    with pytest.raises(BadInput, match="are free"), replacing(tmp_path / "model", [huge]):
        pytest.fail("was written to")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "expunge.json").write_text(text)
    with pytest.raises(BadInput, match=r"expunge\.json"):
        stored_settings(tmp_path)


def test_precisions_and_devices_are_checked() -> None:
    check_loading("bfloat16", "cpu")
    for dtype, device in (("int3", "cpu"), ("float32", "toaster")):
        with pytest.raises(BadInput):
            check_loading(dtype, device)
