"""Reading examples with one label or target each: images, texts and table rows, from wherever they are."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow  # type: ignore[import-untyped]
from datasets import Array2D, Array3D, ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from expunge.data.columns import NO_COLUMN, column_option
from expunge.data.files import Duplicates
from expunge.data.image_files import holds_images, image_rows
from expunge.data.problems import ProblemList
from expunge.data.sources import IN_MEMORY, Source, read_rows
from expunge.data.text_files import Row
from expunge.errors import BadInput
from expunge.registry import near_names
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE, unit_of
from expunge.requests.request import example_id

Inputs = Literal["image", "text", "tabular"]
# Canonical name -> names by which published sets call it; the canonical name comes first.
NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img"),
    "text": ("text", "sentence", "utterance"),
    "label": ("label", "labels", "class", "intent", "fine_label"),
    "target": ("target",),
    "group": ("group",),
}


def read_labelled(
    source: Source,
    inputs: Inputs,
    *,
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    limit: int | None = None,
    split: str | None = None,
    role: str = "examples",
) -> Dataset:
    """Read examples for a classifier or regressor.

    Args:
        source: whatever ``read_examples`` reads; for images also a folder or zip with one folder per class, and IDX
            files.
        inputs: what the model is given: an image, a text, or the row of a table.
        columns: canonical name ("image", "text", "label", "target", "group") -> name in the source, where they are
            not recognised by themselves.
        duplicates: "refuse" examples that are the same, label included, or "drop" all but the first.
        limit: read the first so many rows only.
        split: which split, of a source that has several.
        role: what the examples are for; named in problems.

    Returns:
        A dataset with ``id`` (from the content: pixels, text or row, and label), ``image`` or ``text`` or the columns
        of the table, ``label`` (name of a class) or ``target`` (a number or a list of them), ``group`` where there is
        one, ``source_file`` and ``source_line``, and all other columns as they were.

    Raises:
        BadInput: all problems of the source at once, with file, line, field and fix.
    """
    examples, problems = try_read_labelled(
        source, inputs, columns=columns, duplicates=duplicates, limit=limit, split=split, role=role
    )
    if problems or examples is None:
        raise BadInput(problems.all())
    return examples


def try_read_labelled(
    source: Source,
    inputs: Inputs,
    *,
    columns: Mapping[str, str] | None = None,
    duplicates: Duplicates = "refuse",
    limit: int | None = None,
    split: str | None = None,
    role: str = "examples",
) -> tuple[Dataset | None, ProblemList]:
    """Read as ``read_labelled`` does, and return (examples or None, problems) instead of raising."""
    problems = ProblemList(role)
    given = str(source) if isinstance(source, str | Path) else IN_MEMORY
    local = Path(source).expanduser() if isinstance(source, str | Path) else None
    if inputs == "image" and local is not None and local.exists() and holds_images(local):
        rows = list(islice(image_rows(local, problems), limit))
    else:
        rows = read_rows(source, problems, limit=limit, split=split)
    if not rows:
        if not problems:
            problems.add(given, "holds no examples", "give at least one example")
        return None, problems
    found = list(dict.fromkeys(column for row in rows for column in row.values))
    names = _recognise(found, inputs, given, problems, columns or {})
    if names is None:
        return None, problems
    renamed = {actual: canonical for canonical, actual in names.items()}
    values = {renamed.get(c, c): [row.values.get(c) for row in rows] for c in found if c != "id"}
    for place in (SOURCE_FILE, SOURCE_LINE):
        values.pop(place, None)
    _name_classes(source, names, values)
    # A file of texts says "1" whether that is a name or a number: as a label it stays the text that it is.
    written = inputs == "tabular" and all(isinstance(cell, str) for cell in values.get("label", [None]))
    if inputs == "tabular":
        values = {column: _typed(cells) for column, cells in values.items()}
    _check_outcome(rows, names, values, problems)
    known = [c for c in values if c in ("image", "text")] or [c for c in values if c not in NAMES]
    outcome = "label" if "label" in names else "target"
    ids: list[str] = []
    first: dict[str, Row] = {}
    kept: list[int] = []
    for index, row in enumerate(rows):
        content = {column: _content(values[column][index], column == "image") for column in (*known, outcome)}
        identity = example_id(content)
        same = first.setdefault(identity, row)
        if same is row:
            ids.append(identity)
            kept.append(index)
        elif duplicates == "refuse":
            fix = "remove one of them, or drop repeats: --duplicates drop (in Python: duplicates='drop')"
            problems.add(row.source, f"is the same as {unit_of(same.source)} {same.line}", fix, line=row.line)
    if problems:
        return None, problems
    table = {column: [cells[i] for i in kept] for column, cells in values.items()}
    if written:
        table["label"] = list(map(str, table["label"]))
    places: dict[str, list[Any]] = {
        SOURCE_FILE: [rows[i].source for i in kept],
        SOURCE_LINE: [rows[i].line for i in kept],
    }
    return _dataset({"id": ids, **table, **places}, given, problems), problems


def _recognise(
    found: Sequence[str], inputs: Inputs, source: str, problems: ProblemList, mapping: Mapping[str, str]
) -> dict[str, str] | None:
    """Return canonical name -> name in the source, or None if something is missing."""
    names: dict[str, str] = {}
    before = problems.count
    for canonical, actual in mapping.items():
        if canonical not in NAMES:
            problems.add("columns", f"'{canonical}' is not a column that is used", f"use one of {', '.join(NAMES)}")
        elif actual not in found:
            problems.add(source, f"{NO_COLUMN}'{actual}'; it has {', '.join(found)}", near_names(actual, list(found)))
        else:
            names[canonical] = actual
    for canonical, aliases in NAMES.items():
        present = [alias for alias in aliases if alias in found and alias not in names.values()]
        both = {"label", "target"} & set(names)
        if canonical not in names and present and not (canonical in ("label", "target") and both):
            names[canonical] = present[0]
    wanted = [] if inputs == "tabular" else [inputs]
    for canonical in wanted:
        if canonical not in names and canonical not in mapping:
            what = f"{NO_COLUMN}'{canonical}'; it has {', '.join(found)}"
            problems.add(source, what, f"say which one it is: {column_option(canonical, 'NAME')}")
    if not {"label", "target"} & {*names, *mapping}:
        what = f"{NO_COLUMN}'label' or 'target'; it has {', '.join(found)}"
        fix = f"say which one it is: {column_option('label', 'NAME')}; numbers are the column target"
        problems.add(source, what, fix)
    return None if problems.count > before else names


def _name_classes(source: Source, names: Mapping[str, str], values: dict[str, list[Any]]) -> None:
    """Put the names of classes in the place of their numbers where a dataset knows them."""
    features = getattr(source, "features", None) if isinstance(source, Dataset | DatasetDict) else None
    feature = (features or {}).get(names.get("label", ""))
    if isinstance(feature, ClassLabel):
        values["label"] = [None if v is None or v < 0 else feature.int2str(int(v)) for v in values["label"]]


def _typed(cells: list[Any]) -> list[Any]:
    """Return the cells of a column as numbers where all that are filled are numbers; otherwise as they are."""
    if not all(isinstance(cell, str) for cell in cells):
        return cells
    stripped = [cell.strip() for cell in cells]
    try:
        return [float(cell) if cell else None for cell in stripped]
    except ValueError:
        return stripped


def _check_outcome(
    rows: Sequence[Row], names: Mapping[str, str], values: dict[str, list[Any]], problems: ProblemList
) -> None:
    column = "label" if "label" in names else "target"
    for index, (row, value) in enumerate(zip(rows, values[column], strict=True)):
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            problems.add(row.source, "is missing or NaN", "fill it in, or leave the example out", line=row.line,
                         column=names[column])  # fmt: skip
        elif column == "label" and isinstance(value, float) and value.is_integer():
            values[column][index] = int(value)
        elif column == "label" and not isinstance(value, str | int):
            what = f"is {str(value)[:60]!r}, which names no class"
            problems.add(row.source, what, "give a name or a whole number", line=row.line, column=names[column])
    if column == "label" and any(isinstance(value, str) for value in values[column]):
        values[column] = [None if value is None else str(value) for value in values[column]]


def _content(value: Any, image: bool = False) -> Any:
    """Return what stands for a value in an id: equal for equal pixels, whatever file they come in."""
    if image and isinstance(value, list):
        value = _pixels(value)
    if isinstance(value, dict) and "bytes" in value:
        try:
            with Image.open(io.BytesIO(value["bytes"] or Path(value["path"]).read_bytes())) as picture:
                whole = picture.mode in ("L", "RGB") or picture.mode[0] in "IF"  # converted, deep pixels are cut off
                plain = picture if whole else picture.convert("RGB")
                value = np.asarray(plain)
        except (OSError, TypeError):
            return str(value.get("path"))
    if isinstance(value, np.ndarray):
        digest = hashlib.blake2b(np.ascontiguousarray(value).tobytes(), digest_size=16)
        return [list(value.shape), str(value.dtype), digest.hexdigest()]
    return value


def _pixels(rows: list[Any]) -> Any:
    """Return nested lists as the array that they were made of; unchanged where they are none."""
    try:
        array = np.asarray(rows)
    except ValueError:  # rows of different length; said when the model is given them
        return rows
    if array.dtype.kind in "ui" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    return array.astype(np.float32) if array.dtype.kind == "f" else rows


def _dataset(columns: dict[str, list[Any]], name: str, problems: ProblemList) -> Dataset | None:
    features = _image_features(columns)
    plain = {column: cells for column, cells in columns.items() if column not in features}
    for column, cells in plain.items():
        try:
            pyarrow.array(cells)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            what = f"cannot be one column: {str(error).splitlines()[0][:120]}"
            problems.add(name, what, "give all values of the column one type, or leave the column out", column=column)
    if problems:
        return None
    made = Dataset.from_dict(plain)
    if not features:
        return made
    return Dataset.from_dict(columns, features=Features({**made.features, **features}))


def _image_features(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Say how the column of images is stored: encoded files as they are, arrays of one shape as arrays."""
    images = columns.get("image")
    if images is None:
        return {}
    if isinstance(images[0], dict):
        return {"image": ImageFeature()}
    arrays = [np.asarray(image) for image in images]
    if all(array.dtype.kind in "ui" and array.size and 0 <= array.min() <= array.max() <= 255 for array in arrays):
        arrays = [array.astype(np.uint8) for array in arrays]
    shapes = {(array.shape, array.dtype) for array in arrays}
    if len(shapes) > 1 or arrays[0].ndim not in (2, 3) or arrays[0].dtype.kind not in "uif":
        return {}
    kind = {2: Array2D, 3: Array3D}[arrays[0].ndim]
    dtype = "float32" if arrays[0].dtype.kind == "f" else "uint8" if arrays[0].dtype == np.uint8 else "int64"
    return {"image": kind(shape=arrays[0].shape, dtype=dtype)}
