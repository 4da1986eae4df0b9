"""Labelled examples from every kind of source come out alike, with ids from their content."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as Picture
from PIL import Image

from expunge.data.labelled import read_labelled
from expunge.errors import BadInput


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def pixels(value: int) -> np.ndarray:
    return np.full((4, 5, 3), value, np.uint8)


def test_the_same_picture_has_the_same_id_whatever_file_it_comes_in(tmp_path: Path) -> None:
    for folder, kind in (("png", "PNG"), ("bmp", "BMP")):
        for value, label in ((1, "cat"), (2, "dog")):
            (tmp_path / folder / label).mkdir(parents=True)
            (tmp_path / folder / label / f"{value}.{folder}").write_bytes(encoded(pixels(value), kind))
    one, other = (read_labelled(tmp_path / folder, "image") for folder in ("png", "bmp"))
    assert one["id"] == other["id"]
    assert list(one["label"]) == ["cat", "dog"]
    assert one[0]["image"].size == (5, 4)
    assert isinstance(one.features["image"], Picture)


def test_pictures_of_many_bits_are_told_apart(tmp_path: Path) -> None:
    for value in (1000, 2000):  # both are beyond what 8 bits hold
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{value}.png").write_bytes(encoded(np.full((4, 5), value, np.uint16)))
    assert len(set(read_labelled(tmp_path, "image")["id"])) == 2


def test_a_picture_with_another_label_is_another_example() -> None:
    rows = Dataset.from_dict({"image": [pixels(1).tolist()] * 2, "label": ["cat", "dog"]})
    assert len(set(read_labelled(rows, "image")["id"])) == 2


def test_arrays_keep_their_shape_and_names_of_classes_take_the_place_of_numbers() -> None:
    features = Features({"img": [[Value("int64")]], "label": ClassLabel(names=["zero", "one"])})
    rows = Dataset.from_dict({"img": [[[0, 255]], [[3, 4]]], "label": [1, 0]}, features=features)
    found = read_labelled(rows, "image")
    assert list(found["label"]) == ["one", "zero"]
    assert found.features["image"].dtype == "uint8"
    assert found.with_format("numpy")[0]["image"].tolist() == [[0, 255]]


def test_tables_hold_numbers_where_they_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("age,town,pay\n31, Velburg,1.5\n,Harrow Bay,2\n")
    found = read_labelled(str(file), "tabular", columns={"target": "pay", "group": "town"})
    assert found[0]["age"] == 31.0
    assert found[1]["age"] is None
    assert list(found["target"]) == [1.5, 2.0]
    assert list(found["group"]) == ["Velburg", "Harrow Bay"]
    assert list(found["source_line"]) == [2, 3]


def test_a_label_in_a_file_of_texts_is_a_text(tmp_path: Path) -> None:
    for name, lines in (("t.csv", "age,label\n31,1\n32,2.0\n"), ("t.jsonl", '{"age": 31.0, "label": 1}\n')):
        (tmp_path / name).write_text(lines)
    written, said = (read_labelled(str(tmp_path / name), "tabular") for name in ("t.csv", "t.jsonl"))
    assert list(written["label"]) == ["1", "2"]
    assert list(said["label"]) == [1]
    assert written["id"][0] == said["id"][0]


def test_ids_do_not_depend_on_order_or_on_columns_that_are_not_inputs(tmp_path: Path) -> None:
    rows = [{"text": "a clock", "intent": "time", "note": 1}, {"text": "a bay", "intent": "place", "note": 2}]
    one = read_labelled(Dataset.from_list(rows), "text")
    other = read_labelled(Dataset.from_list([{**row, "note": 9} for row in rows[::-1]]), "text")
    assert one["id"] == other["id"][::-1]
    assert one["id"] == read_labelled(one, "text")["id"], "what was read can be read again"


def test_a_label_that_is_missing_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("x,label\n1,cat\n2,\n")
    with pytest.raises(BadInput, match=r"t\.csv, line 3, field 'label': is missing or NaN"):
        read_labelled(str(file), "tabular")


def test_a_target_that_is_nan_is_named() -> None:
    rows = Dataset.from_dict({"x": [1.0, 2.0], "target": [1.0, float("nan")]})
    with pytest.raises(BadInput, match="row 2, field 'target': is missing or NaN"):
        read_labelled(rows, "tabular")


def test_repeats_are_refused_or_dropped() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "a"], "label": ["x", "x", "x"]})
    with pytest.raises(BadInput, match="row 3: is the same as row 1"):
        read_labelled(rows, "text")
    assert len(read_labelled(rows, "text", duplicates="drop")) == 2


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": "lable"}, "has no column 'lable'"),
        ({"lable": "y"}, "'lable' is not a column that is used"),
        ({}, "has no column 'label' or 'target'; it has x, y"),
    ],
)
def test_columns_that_are_not_there_are_named(columns: dict[str, str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read_labelled(Dataset.from_dict({"x": [1.0], "y": ["a"]}), "tabular", columns=columns)


def test_every_column_that_is_not_there_is_named_at_once() -> None:
    with pytest.raises(BadInput) as error:
        read_labelled(Dataset.from_dict({"question": ["a"]}), "text")
    assert [problem.fix for problem in error.value.problems] == [
        "say which one it is: --set columns.text=NAME (in Python: columns={'text': 'NAME'})",
        "say which one it is: --set columns.label=NAME (in Python: columns={'label': 'NAME'}); numbers are the column "
        "target",
    ]


def test_an_image_set_without_images_is_named() -> None:
    with pytest.raises(BadInput, match="has no column 'image'; it has text, label"):
        read_labelled(Dataset.from_dict({"text": ["a"], "label": ["b"]}), "image")
