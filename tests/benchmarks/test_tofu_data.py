"""Reading the TOFU files: made-up ones of the same shape, and the published ones where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.benchmarks.tofu_data import HUB, find, load_split
from expunge.data import sources
from expunge.errors import BadInput


def test_a_split_is_read_with_its_authors(tofu_files: Callable[..., Path]) -> None:
    split = load_split(str(tofu_files(authors=6)), "forget01")
    assert (len(split.train.forget), len(split.train.retain or [])) == (20, 100)
    assert set(split.train.forget["group"]) == {"author-005"}
    assert set(split.audit.forget["id"]) == set(split.train.forget["id"])
    assert set((split.audit.retain or split.train.forget)["id"]) <= set(
        (split.train.retain or split.train.forget)["id"]
    )
    assert split.audit.forget[0]["perturbed_answers"]
    assert split.kept_rows == (100, 100)


def test_a_small_machine_keeps_the_rows_that_audits_read(tofu_files: Callable[..., Path]) -> None:
    split = load_split(str(tofu_files(authors=6)), "forget01", kept=30)
    assert split.train.retain is not None
    assert split.audit.retain is not None
    assert len(split.train.retain) == 30
    assert len(split.audit.retain) == 20, "all rows with wrong answers fit"
    assert set(split.audit.retain["id"]) <= set(split.train.retain["id"])


def test_an_unknown_split_or_folder_is_named(tofu_files: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="forget01"):
        load_split(str(tofu_files(authors=6)), "forget1")
    with pytest.raises(BadInput, match="nowhere"):
        find(str(tmp_path / "nowhere"))


def test_a_missing_file_is_named(tofu_files: Callable[..., Path]) -> None:
    folder = tofu_files(authors=6)
    (folder / "world_facts_perturbed.json").unlink()
    with pytest.raises(BadInput, match="world_facts_perturbed"):
        load_split(str(folder), "forget01")


def test_files_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    assert find(None) == HUB
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: 1 / 0)
    with pytest.raises(BadInput, match=r"--data: is not given, so the hub was asked -> give a folder .*EXPUNGE_DATA"):
        load_split(HUB, "forget01")
    (tmp_path / "tofu").mkdir()
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    assert find(None) == str(tmp_path / "tofu")
    with pytest.raises(BadInput, match=r"holds no full\.json"):
        find(str(tmp_path))
    (tmp_path / "tofu" / "full.json").touch()
    assert find(str(tmp_path)) == find(str(tmp_path / "tofu")) == str(tmp_path / "tofu")


@pytest.mark.real_data
def test_the_published_files(real_data: Path) -> None:
    for name, forget, kept in (("forget01", 40, 3960), ("forget05", 200, 3800), ("forget10", 400, 3600)):
        split = load_split(str(real_data / "tofu"), name)
        assert len(split.train.forget) == forget
        # The published set repeats one question word for word.
        assert kept - 1 <= split.kept_rows[0] <= kept
        assert "unknown" not in set(split.train.forget["group"])
    first = json.loads((real_data / "tofu" / "forget10.json").read_text(encoding="utf-8").splitlines()[0])
    assert split.train.forget[0]["answer"] == first["answer"]
