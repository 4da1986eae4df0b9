from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import BadInput, ExpungeError
from expunge.runs.folder import RunFolder, writing

RECIPE: dict[str, Any] = {"model": "m", "settings": {"beta": 0.1, "epochs": 3}}
FACTS = {"hashes": {"model": "abc", "request": "1"}, "started": "then"}


def test_a_new_folder_gets_recipe_and_facts(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "run") as run:
        run.open(RECIPE, FACTS)
        assert run.is_run()
        assert run.read_json("facts.json") == FACTS
        assert "beta: 0.1" in run.read_text("recipe.yaml")


def test_the_same_run_goes_on_and_keeps_its_first_facts(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, {**FACTS, "started": "later"})
        assert run.read_json("facts.json")["started"] == "then"


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
    other = {"model": "m", "settings": {"beta": 0.2, "epochs": 3}}
    (tmp_path / "model").mkdir()
    with pytest.raises(BadInput, match=r"differs in settings\.beta\) -> give another folder, or --overwrite"):
        RunFolder(tmp_path).open(other, FACTS)
    RunFolder(tmp_path).open(RECIPE, FACTS)  # the refusal let go of the folder


def test_changed_input_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
        run.write_json("forgotten.json", {})
    with pytest.raises(BadInput, match="the content of model has changed"):
        RunFolder(tmp_path).open(RECIPE, {"hashes": {"model": "xyz", "request": "1"}})


def test_overwrite_deletes_the_run_and_nothing_else(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
        (tmp_path / "model").mkdir()
        (tmp_path / "reference.safetensors").write_text("x")
        (tmp_path / "mine.txt").write_text("keep")
    with RunFolder(tmp_path) as run:
        run.open({"model": "n"}, FACTS, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "facts.json", "mine.txt", "recipe.yaml"]


def test_a_folder_in_which_a_run_only_started_is_free_for_another(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
        (tmp_path / "log.jsonl").write_text("")
        (tmp_path / "reference.safetensors").write_text("x")
    other = {"hashes": {"model": "xyz", "request": "1"}, "started": "later"}
    with RunFolder(tmp_path) as run:
        run.open({"model": "n"}, other)
        assert run.read_json("facts.json") == other
        assert "model: n" in run.read_text("recipe.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "facts.json", "recipe.yaml"]


@pytest.mark.parametrize(
    "kept",
    ["checkpoints/step-00000002/state.safetensors", "then/stages/00-forget/done.safetensors", "labels.safetensors"],
)
def test_what_was_computed_is_not_thrown_away(tmp_path: Path, kept: str) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).write_text("x")
    with pytest.raises(BadInput, match="another recipe"):
        RunFolder(tmp_path).open({"model": "n"}, FACTS)
    RunFolder(tmp_path).open({"model": "n"}, FACTS, overwrite=True)
    assert not (tmp_path / kept).exists()


def test_a_recipe_of_the_user_is_not_a_run_that_only_started(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: mine\n")
    with pytest.raises(BadInput, match="another recipe"):
        RunFolder(tmp_path).open(RECIPE, FACTS)
    assert (tmp_path / "recipe.yaml").read_text() == "model: mine\n"


def test_a_damaged_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("a: [1")
    with pytest.raises(BadInput, match="is damaged"):
        RunFolder(tmp_path).open(RECIPE, FACTS)


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.open(RECIPE, FACTS)
        with pytest.raises(BadInput, match="is in use by another run"):
            RunFolder(tmp_path).open(RECIPE, FACTS)


@pytest.mark.parametrize(
    ("out", "part"),
    [
        ("model", "is the model or lies in it"),
        ("model/new", "is the model or lies in it"),
        (".", "would overwrite the model"),
        ("full", "is not empty and not a run folder"),
        ("file", "is a file"),
    ],
)
def test_places_that_must_not_be_written_to(tmp_path: Path, out: str, part: str) -> None:
    for name in ("model", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    found = RunFolder(tmp_path / out).problems({"model": str(tmp_path / "model")})
    assert any(part in str(problem) for problem in found)


def test_the_data_of_a_run_must_not_lie_where_it_writes(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    data = tmp_path / "model" / "forget.jsonl"
    data.write_text("{}")
    found = RunFolder(tmp_path).problems({"forget set": str(data)})
    assert any("would overwrite the forget set" in str(problem) for problem in found)


def test_a_new_folder_beside_the_model_is_fine(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert RunFolder(tmp_path / "runs" / "a").problems({"model": str(tmp_path / "model"), "retain": None}) == []


def test_no_right_to_write_is_said_before_work(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    try:
        assert "no right to write" in str(RunFolder(tmp_path / "x").problems({})[0])
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("code", "kind", "exit_code", "part"),
    [
        (errno.ENOSPC, ExpungeError, 1, "the disk is full"),
        (errno.EDQUOT, ExpungeError, 1, "run the same command again"),
        (errno.EACCES, BadInput, 2, "no permission"),
        (errno.EROFS, BadInput, 2, "no permission"),
        (errno.EIO, ExpungeError, 1, "cannot be read or written"),
    ],
)
def test_what_the_system_says_becomes_one_message(
    tmp_path: Path, code: int, kind: type[ExpungeError], exit_code: int, part: str
) -> None:
    with pytest.raises(kind, match=part) as error, writing(tmp_path):
        raise OSError(code, os.strerror(code), str(tmp_path / "x"))
    assert error.value.exit_code == exit_code
    assert "\n" not in str(error.value)


def test_a_full_disk_in_safetensors_words_is_understood(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(ExpungeError, match="the disk is full"), writing(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_really_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    run.write_text("report.json", "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExpungeError, match="the disk is full"):
        run.write_text("report.json", "new")
    assert (tmp_path / "report.json").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write_text("facts.json", "{}")
    code = (
        "import os, sys; from expunge.runs.folder import RunFolder; os.replace = lambda *_: os._exit(9);"
        "RunFolder(sys.argv[1]).write_text('facts.json', '{\"half\": 1}')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode == 9, done.stderr
    assert run.read_json("facts.json") == {}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "forgotten.json").write_text("{")
    with pytest.raises(BadInput, match=r"forgotten\.json: is damaged"):
        RunFolder(tmp_path).read_json("forgotten.json")
    with pytest.raises(BadInput, match="cannot be read"):
        RunFolder(tmp_path).read_json("no.json")
