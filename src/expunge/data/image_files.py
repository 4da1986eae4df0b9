"""Rows of image files: a folder or a zip with one folder per class, and IDX files as MNIST comes in."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from expunge.data.problems import ProblemList
from expunge.data.text_files import Row

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
IDX = "idx3-ubyte"
# What the decompressors raise for damaged data.
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
# A picture larger than this is more likely a decompression bomb than an example.
MOST_BYTES = 200 << 20
_CODES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
TYPES: dict[int, np.dtype[Any]] = {code: np.dtype(name) for code, name in _CODES.items()}


def holds_images(path: Path) -> bool:
    """Say whether a path is one that ``image_rows`` reads: a zip, IDX files, or a folder with pictures in it."""
    if path.is_dir():
        return any(_is_picture(file) for file in path.rglob("*"))
    return path.suffix.lower() == ".zip" or IDX in path.name


def image_rows(path: Path, problems: ProblemList) -> Iterator[Row]:
    """Yield one row per image, with the columns ``image`` and ``label`` (the folder it lies in, or its IDX label).

    Args:
        path: a folder or zip in which each picture lies in a folder named after its class; or an IDX file of images,
            plain or gzipped, beside the file of its labels (``...-labels-idx1-ubyte``).
        problems: takes whatever is wrong.
    """
    if path.is_dir():
        yield from _folder(path, problems)
    elif path.suffix.lower() == ".zip":
        yield from _zip(path, problems)
    else:
        yield from _idx(path, problems)


def _is_picture(path: PurePath) -> bool:
    """Whether a file is called as a picture is; what macOS puts beside each file in a zip ("._1.png") is none."""
    return path.suffix.lower() in PICTURES and not path.name.startswith("._")


def _folder(path: Path, problems: ProblemList) -> Iterator[Row]:
    files = sorted(file for file in path.rglob("*") if _is_picture(file.relative_to(path)))
    for number, file in enumerate(files, 1):
        name = file.relative_to(path).as_posix()
        yield from _picture(str(path), number, name, file.read_bytes(), problems)


def _zip(path: Path, problems: ProblemList) -> Iterator[Row]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if _is_picture(PurePosixPath(m.filename))]
            for number, member in enumerate(sorted(members, key=lambda m: m.filename), 1):
                if member.file_size > MOST_BYTES:
                    what = f"{member.filename} would take {member.file_size} bytes"
                    problems.add(str(path), what, "leave it out", line=number)
                    continue
                yield from _picture(str(path), number, member.filename, archive.read(member), problems)
    except (zipfile.BadZipFile, RuntimeError, *DAMAGED) as error:
        problems.add(str(path), f"is not a complete zip file: {error}", "copy or download it again")


def _picture(source: str, number: int, name: str, data: bytes, problems: ProblemList) -> Iterator[Row]:
    label = PurePosixPath(name).parent.name
    if not label:
        what = f"{name} lies in no folder, so its class is not known"
        problems.add(source, what, "put each picture into a folder named after its class", line=number)
        return
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.verify()
    except Exception as error:  # the library fails in as many ways as there are formats
        # What it cannot tell at all it calls by the address of the buffer.
        why = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        problems.add(source, f"{name} is not a picture{why}", "copy it again, or leave it out", line=number)
        return
    yield Row(source, number, {"image": {"bytes": data, "path": name}, "label": label})


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array in an IDX file, plain or gzipped.

    Raises:
        ValueError: it is not one, or it is cut off.
    """
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise ValueError("does not begin as an IDX file does")
    count, kind = data[3], TYPES[data[2]]
    if len(data) < 4 + 4 * count:
        raise ValueError("is cut off")
    shape = struct.unpack(f">{count}I", data[4 : 4 + 4 * count])
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(data) != 4 + 4 * count + size:
        raise ValueError(f"holds {len(data) - 4 - 4 * count} bytes for an array of {size}")
    return np.frombuffer(data, kind, offset=4 + 4 * count).reshape(shape).astype(kind.newbyteorder("="))


def _idx(path: Path, problems: ProblemList) -> Iterator[Row]:
    other = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    arrays = []
    for file in (path, other):
        if not file.is_file():
            problems.add(str(file), "is not there, and it holds the labels of the images", "put it beside them")
            continue
        try:
            arrays.append(read_idx(file))
        except (ValueError, *DAMAGED) as error:
            problems.add(str(file), f"is not a complete IDX file: {error}", "copy or download it again")
    if len(arrays) < 2:
        return
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        what = f"holds an array of {images.shape} for labels of {labels.shape}"
        problems.add(str(path), what, "give the images and the labels of one set")
        return
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True), 1):
        yield Row(str(path), number, {"image": image, "label": str(label)})
