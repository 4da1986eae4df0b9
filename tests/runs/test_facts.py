from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from expunge.runs import facts

ROOT = Path(__file__).resolve().parents[2]


def test_the_versions_that_doctor_compares_with_are_those_of_the_tests() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: pinned[name] for name in facts.TESTED} == facts.TESTED


def test_versions_name_python_and_this_package() -> None:
    found = facts.versions()
    assert found["python"] == platform.python_version()
    assert found["expunge"]
    assert set(facts.TESTED) <= set(found)


def test_hardware_is_plain_and_does_not_name_the_machine() -> None:
    text = json.dumps(facts.hardware())
    assert "cores" in text
    assert not platform.node() or platform.node() not in text


def test_one_weight_file_hashes_as_sha256sum_does(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert facts.weights_sha256(tmp_path) == hashlib.sha256(b"weights").hexdigest()


def test_shards_count_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    before = facts.weights_sha256(tmp_path)
    (tmp_path / "notes.txt").write_text("no weights")
    assert facts.weights_sha256(tmp_path) == before
    (tmp_path / "b.safetensors").write_bytes(b"3")
    assert facts.weights_sha256(tmp_path) != before


def test_what_lies_in_sub_folders_counts_too(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"base")
    alone = facts.weights_sha256(tmp_path)
    (tmp_path / "members" / "1").mkdir(parents=True)
    (tmp_path / "members" / "1" / "adapter_model.safetensors").write_bytes(b"1")
    first = facts.weights_sha256(tmp_path)
    (tmp_path / "members" / "1" / "adapter_model.safetensors").write_bytes(b"2")
    assert len({alone, first, facts.weights_sha256(tmp_path)}) == 3


def test_no_weights_is_no_hash(tmp_path: Path) -> None:
    assert facts.weights_sha256(tmp_path) == ""
    assert facts.data_sha256("owner/name-that-is-no-path") == ""


def test_a_folder_hashes_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.jsonl").write_text("{}")
    before = facts.data_sha256(tmp_path)
    (tmp_path / "x" / "1.jsonl").rename(tmp_path / "x" / "2.jsonl")
    assert facts.data_sha256(tmp_path) != before


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_says_whether_the_source_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "repo" / "expunge" / "runs" / "facts.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(facts, "__file__", str(file))

    def git(*words: str) -> str:
        # What git says of the repository around the tests must not reach it.
        here = ["git", "-C", str(tmp_path / "repo"), "-c", "user.name=t", "-c", "user.email=t@localhost"]
        return subprocess.run([*here, *words], capture_output=True, text=True, check=True).stdout.strip()

    assert facts.commit() == "", "no repository"
    git("init", "-q")
    assert facts.commit() == "", "a repository that does not track the source is somebody else's"
    git("add", ".")
    git("commit", "-q", "-m", "one")
    assert facts.commit() == git("rev-parse", "--short", "HEAD")
    file.write_text("changed")
    assert facts.commit() == git("rev-parse", "--short", "HEAD") + "+"
