from __future__ import annotations

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, Features, Image

from expunge.data import sources
from expunge.data.problems import ProblemList
from expunge.data.sources import read_rows

ROWS = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]


def read(source: object, **options: object) -> tuple[list[dict[str, object]], str]:
    problems = ProblemList()
    rows = read_rows(source, problems, **options)  # type: ignore[arg-type]
    return [row.values for row in rows], "\n".join(map(str, problems.all()))


@pytest.fixture
def data() -> Dataset:
    return Dataset.from_list(ROWS)


def test_parquet_and_limit(tmp_path: Path, data: Dataset) -> None:
    path = tmp_path / "a.parquet"
    data.to_parquet(path)
    assert read(path) == (ROWS, "")
    assert read(str(path), limit=2) == (ROWS[:2], "")
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a complete Parquet file" in read(path)[1]


def test_saved_dataset_with_and_without_splits(tmp_path: Path, data: Dataset) -> None:
    data.select([4, 0]).save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == ([ROWS[4], ROWS[0]], "")
    assert "has no split 'test'" in read(tmp_path / "one", split="test")[1]
    DatasetDict(train=data, test=data.select([1])).save_to_disk(tmp_path / "two")
    assert read(tmp_path / "two", split="test") == ([ROWS[1]], "")
    assert "train, test; none was chosen" in read(tmp_path / "two")[1]
    assert "not 'dev'" in read(tmp_path / "two", split="dev")[1]
    DatasetDict(train=data).save_to_disk(tmp_path / "three")
    assert read(tmp_path / "three") == (ROWS, "")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"broken")
    assert "not a complete dataset folder" in read(tmp_path / "one")[1]


def test_folder_of_files(tmp_path: Path, data: Dataset) -> None:
    (tmp_path / "data").mkdir()
    data.select([0, 1]).to_json(tmp_path / "data" / "train-00000-of-00002.jsonl")
    data.select([2]).to_csv(tmp_path / "data" / "train-00001-of-00002.csv", index=False)
    data.select([3]).to_parquet(tmp_path / "test.parquet")
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / ".cache").mkdir()
    data.to_json(tmp_path / ".cache" / "hidden.jsonl")
    assert read(tmp_path) == (ROWS[:4], "")
    assert read(tmp_path, split="train") == (ROWS[:3], "")
    assert read(tmp_path, split="test") == ([ROWS[3]], "")
    assert "no file of the split 'dev'" in read(tmp_path, split="dev")[1]


def test_folder_without_data(tmp_path: Path) -> None:
    assert "no data files" in read(tmp_path)[1]


def test_files_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").touch()
    (tmp_path / "a.docx").touch()
    assert "can run code" in read(tmp_path / "a.pkl")[1]
    assert "suffix '.docx'" in read(tmp_path / "a.docx")[1]
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    assert "a single file has no split" in read(tmp_path / "a.csv", split="train")[1]


def test_missing_file_names_near_ones_and_does_not_ask_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    (tmp_path / "forget.jsonl").touch()
    (tmp_path / "holdout.jsonl").touch()
    assert "did you mean forget.jsonl?" in read(tmp_path / "forgot.jsonl")[1]
    assert "check the path" in read(tmp_path / "zzz.jsonl")[1], "endings alone are no likeness"
    monkeypatch.chdir(tmp_path.parent)
    assert "did you mean forget.jsonl?" in read(f"{tmp_path.name}/forgt")[1], "this is no owner on the hub"
    assert "there is no folder" in read("nowhere/at/all.csv")[1]
    assert "no such file" in read("some data.csv")[1]


def test_hub_name(monkeypatch: pytest.MonkeyPatch, data: Dataset) -> None:
    asked = []

    def load(*arguments: object, **options: object) -> Dataset:
        asked.append((arguments, options))
        return data if options["split"] else DatasetDict(train=data)

    monkeypatch.setattr(sources, "load_dataset", load)
    assert read("owner/no-such-name:forget01") == (ROWS, "")
    assert read("owner/no-such-name", split="train[:5]") == (ROWS, "")
    assert asked == [
        (("owner/no-such-name", "forget01"), {"split": None}),
        (("owner/no-such-name", None), {"split": "train[:5]"}),
    ]


def test_hub_failure_says_both_things_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> Dataset:
        raise ConnectionError("Couldn't reach the Hub\nmore")

    monkeypatch.setattr(sources, "load_dataset", load)
    rows, said = read("owner/no-such-name")
    assert rows == []
    assert said.count("\n") == 0
    assert "no such file or folder" in said
    assert "ConnectionError: Couldn't reach the Hub" in said


def test_images_are_not_decoded(tmp_path: Path) -> None:
    pictures = Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}]}, features=Features(image=Image()))
    rows, said = read(pictures)
    assert rows[0]["image"]["bytes"] == b"no image"  # type: ignore[index]
    assert said == ""
