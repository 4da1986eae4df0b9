"""Published sets come out as labelled examples; those that are bundled need no files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from expunge.data import known_sets
from expunge.errors import BadInput


def test_digits_are_split_noisy_and_the_same_for_a_seed() -> None:
    train, test = known_sets.digits("train"), known_sets.digits("test")
    assert (len(train), len(test)) == (1200, 597)
    assert not set(train["id"]) & set(test["id"])
    assert set(train["label"]) == set("0123456789")
    assert train["id"] == known_sets.digits("train")["id"]
    plain, noisy = (known_sets.digits("train", noise=n).with_format("numpy")[:]["image"] for n in (0.0, 0.45))
    assert abs(float(np.std(noisy - plain)) - 0.45) < 0.02


@pytest.mark.parametrize(("name", "outcome"), [("diabetes", "target"), ("wine", "label"), ("iris", "label")])
def test_bundled_tables_have_an_outcome(name: str, outcome: str) -> None:
    table = known_sets.bundled_table(name)  # type: ignore[arg-type]
    assert outcome in table.column_names
    assert len(set(table["id"])) == len(table)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("read", "count", "outcome"),
    [
        (lambda f: known_sets.cifar10("test", f), 2000, "label"),
        (lambda f: known_sets.mnist10k("test", f), 2000, "label"),
        (known_sets.california_housing, 20640, "target"),
        (known_sets.abalone, 4177, "target"),
        (lambda f: known_sets.clinc150("val", f), 3000, "label"),
    ],
)
def test_published_sets_are_read(real_data: Path, read: Callable[[Path], Dataset], count: int, outcome: str) -> None:
    found = read(real_data)
    assert len(found) == count
    assert outcome in found.column_names
    assert None not in found[outcome]


def test_files_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    with pytest.raises(BadInput, match="EXPUNGE_DATA: is not set"):
        known_sets.abalone()
    with pytest.raises(BadInput, match=r"abalone\.csv: is not there"):
        known_sets.abalone(tmp_path)
    (tmp_path / "abalone").mkdir()
    (tmp_path / "abalone" / "abalone.csv").write_text("M,1,2\n")
    with pytest.raises(BadInput, match="line 1: has 3 values where there are 9 columns"):
        known_sets.abalone(tmp_path)
