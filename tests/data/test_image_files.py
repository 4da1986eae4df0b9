"""Pictures from folders and zips, arrays from IDX files, and what can be wrong with each."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.data.image_files import holds_images, image_rows, read_idx
from expunge.data.problems import ProblemList


def png(value: int, size: int = 4) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, value in (("cat/1.png", 10), ("cat/2.PNG", 20), ("dog/deep/3.png", 30)):
        file = tmp_path / "pictures" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(value))
    return tmp_path / "pictures"


def test_the_folder_of_a_picture_is_its_class(folder: Path) -> None:
    problems = ProblemList()
    rows = list(image_rows(folder, problems))
    assert holds_images(folder)
    assert not problems
    assert [(row.line, row.values["label"]) for row in rows] == [(1, "cat"), (2, "cat"), (3, "deep")]


def test_a_zip_says_the_same_as_the_folder(folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in sorted(folder.rglob("*.*"), reverse=True):
            archive.write(file, file.relative_to(folder))
    one, other = (list(image_rows(p, ProblemList())) for p in (folder, tmp_path / "all.zip"))
    assert [row.values for row in one] == [row.values for row in other]


def test_what_is_no_picture_is_named(folder: Path) -> None:
    (folder / "cat" / "4.png").write_bytes(b"not a picture")
    (folder / "5.png").write_bytes(png(1))
    problems = ProblemList()
    assert len(list(image_rows(folder, problems))) == 3
    text = "\n".join(map(str, problems.all()))
    assert "cat/4.png is not a picture -> copy it again" in text
    assert "5.png lies in no folder" in text


def test_what_macos_adds_to_a_zip_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "some.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.png", png(1))
        archive.writestr("__MACOSX/cat/._1.png", b"\x00\x05\x16\x07")
    problems = ProblemList()
    assert [row.values["label"] for row in image_rows(path, problems)] == ["cat"]
    assert not problems


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    problems = ProblemList()
    assert not list(image_rows(tmp_path / "cut.zip", problems))
    assert "is not a complete zip file" in str(problems.all()[0])


@pytest.mark.parametrize("kind", ["zip", "idx"])
def test_damage_inside_compressed_data_is_named(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/1.bmp", bytes(5000))
    else:
        path = tmp_path / "t-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(idx(np.zeros((60, 9, 9), np.uint8))))
        (tmp_path / "t-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(60, np.uint8))))
    whole = path.read_bytes()
    for place in range(20, len(whole) - 20):  # whatever is damaged, the reader says so or reads on
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        list(image_rows(path, ProblemList()))
    start = 30 + len("cat/1.bmp") if kind == "zip" else 12
    path.write_bytes(whole[:start] + b"\x07" + whole[start + 1 :])  # a kind of block that there is none of
    problems = ProblemList()
    assert not list(image_rows(path, problems))
    assert "is not a complete" in str(problems.all()[0])


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_come_with_their_labels(tmp_path: Path, packed: bool) -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    end = ".gz" if packed else ""
    for name, array in (("images-idx3", images), ("labels-idx1", np.array([7, 0], np.uint8))):
        data = idx(array)
        (tmp_path / f"t-{name}-ubyte{end}").write_bytes(gzip.compress(data) if packed else data)
    path = tmp_path / f"t-images-idx3-ubyte{end}"
    rows = list(image_rows(path, ProblemList()))
    assert holds_images(path)
    assert [row.values["label"] for row in rows] == ["7", "0"]
    np.testing.assert_array_equal(rows[1].values["image"], images[1])


def test_idx_reads_every_type_of_number(tmp_path: Path) -> None:
    values = np.array([[1.5, -2.0]], dtype=">f4")
    (tmp_path / "x").write_bytes(idx(values, 0x0D))
    np.testing.assert_array_equal(read_idx(tmp_path / "x"), values.astype(float))


@pytest.mark.parametrize("cut", [3, 8, 20])
def test_a_cut_idx_file_is_refused(tmp_path: Path, cut: int) -> None:
    (tmp_path / "x").write_bytes(idx(np.zeros((2, 2, 2), np.uint8))[:cut])
    with pytest.raises(ValueError):
        read_idx(tmp_path / "x")


def test_labels_that_are_not_there_or_of_another_set_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t-images-idx3-ubyte"
    path.write_bytes(idx(np.zeros((2, 2, 2), np.uint8)))
    problems = ProblemList()
    assert not list(image_rows(path, problems))
    assert "t-labels-idx1-ubyte" in str(problems.all()[0])
    (tmp_path / "t-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    problems = ProblemList()
    assert not list(image_rows(path, problems))
    assert "(3,)" in str(problems.all()[0])
