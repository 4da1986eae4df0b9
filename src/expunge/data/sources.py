"""Rows of any source: a file, a saved dataset, a folder of files, a dataset in memory or a name on the hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeAlias

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from expunge.data.problems import ProblemList
from expunge.data.text_files import TEXT_READERS, Row
from expunge.requests.places import SOURCE_FILE, SOURCE_LINE
from expunge.requests.request import ROLES

SUFFIXES = (*TEXT_READERS, ".parquet")
CODE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".npy")
HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(:[\w.-]+)?")
IN_MEMORY = "dataset in memory"

Source: TypeAlias = str | Path | Dataset | DatasetDict


def read_rows(
    source: Source, problems: ProblemList, *, limit: int | None = None, split: str | None = None
) -> list[Row]:
    """Read the rows of a source as they are there.

    Args:
        source: see ``expunge.data.read_examples``.
        problems: takes whatever is wrong.
        limit: stop after this many rows.
        split: the split to take of a saved dataset, a folder of files or a hub dataset.

    Returns:
        The rows that could be read.
    """
    return list(islice(_rows(source, problems, split), limit))


def _rows(source: Source, problems: ProblemList, split: str | None) -> Iterator[Row]:
    if isinstance(source, Dataset | DatasetDict):
        yield from _dataset_rows(source, IN_MEMORY, problems, split)
        return
    if not isinstance(source, str | Path):
        fix = "give a path, a hub name or a Dataset, such as datasets.Dataset.from_list(rows)"
        problems.add("source", f"is a {type(source).__name__}", fix)
        return
    path = Path(source).expanduser()
    if path.is_file():
        if split is not None:
            problems.add(str(source), f"a single file has no split '{split}'", "leave out split, or name a folder")
        yield from _file_rows(path, problems)
    elif path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            yield from _saved_rows(path, problems, split)
        else:
            yield from _folder_rows(path, problems, split)
    else:
        yield from _hub_rows(str(source), problems, split)


def _file_rows(path: Path, problems: ProblemList) -> Iterator[Row]:
    suffix = path.suffix.lower()
    if suffix in TEXT_READERS:
        yield from TEXT_READERS[suffix](path, problems)
    elif suffix == ".parquet":
        yield from _parquet_rows(path, problems)
    elif suffix in CODE_SUFFIXES:
        fix = f"save the examples as one of {', '.join(SUFFIXES)}"
        problems.add(str(path), f"{suffix} files can run code when they are read, and are refused", fix)
    else:
        fix = f"save the examples as one of {', '.join(SUFFIXES)}, or name a folder or a hub dataset"
        problems.add(str(path), f"the suffix '{suffix}' is not one of a data file", fix)


def _parquet_rows(path: Path, problems: ProblemList) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(str(path), number, values)
    except (pyarrow.ArrowException, OSError) as error:
        what = f"is not a complete Parquet file ({_first_line(error)})"
        problems.add(str(path), what, "write or download it again", line=number + 1 if number else None)


def _saved_rows(path: Path, problems: ProblemList, split: str | None) -> Iterator[Row]:
    try:
        saved = load_from_disk(str(path))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        what = f"is not a complete dataset folder ({_first_line(error)})"
        problems.add(str(path), what, "save it again with Dataset.save_to_disk")
        return
    yield from _dataset_rows(saved, str(path), problems, split)


def _dataset_rows(data: Dataset | DatasetDict, name: str, problems: ProblemList, split: str | None) -> Iterator[Row]:
    if isinstance(data, DatasetDict):
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            what = f"has the splits {', '.join(data)}" + (f", not '{split}'" if split else "; none was chosen")
            one = next(iter(data), "train")
            role = problems.role if problems.role in ROLES else "forget"
            fix = f"choose one of them: --set splits.{role}={one} (in Python: split={{'{role}': '{one}'}})"
            problems.add(name, what, fix)
            return
        data = data[split]
    elif split is not None and str(data.split) != split:
        problems.add(name, f"has no split '{split}'", "leave out split")
    placed = name == IN_MEMORY and {SOURCE_FILE, SOURCE_LINE} <= set(data.column_names)
    number = 0
    # Arrow values, so that a column of images or audio is not decoded on the way.
    for table in data.with_format("arrow").iter(batch_size=1000):
        for values in table.to_pylist():
            number += 1
            if placed:
                yield Row(values[SOURCE_FILE], values[SOURCE_LINE], values)
            else:
                yield Row(name, number, values)


def _folder_rows(path: Path, problems: ProblemList, split: str | None) -> Iterator[Row]:
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        fix = f"put files with one of the suffixes {', '.join(SUFFIXES)} there, or name another folder"
        problems.add(str(path), "the folder has no data files and is no saved dataset", fix)
    elif split is not None:
        # The hub's naming: train.jsonl, train-00000-of-00002.parquet, train/part.csv
        named = re.compile(rf"{re.escape(split)}([-_.].*)?")
        chosen = [file for file in files if any(named.fullmatch(part) for part in file.relative_to(path).parts)]
        if not chosen:
            names = ", ".join(str(file.relative_to(path)) for file in files[:10])
            problems.add(str(path), f"no file of the split '{split}' among {names}", "name the file itself")
        files = chosen
    for file in files:
        yield from _file_rows(file, problems)


def _hub_rows(name: str, problems: ProblemList, split: str | None) -> Iterator[Row]:
    path = Path(name).expanduser()
    here = path.parent != Path(".") and path.parent.is_dir()  # a folder of this name is meant, not an owner
    if here or path.suffix.lower() in (*SUFFIXES, *CODE_SUFFIXES) or not HUB_NAME.fullmatch(name):
        # Endings are alike and say nothing of how alike two names are.
        there = {entry.stem: entry.name for entry in path.parent.iterdir()} if path.parent.is_dir() else {}
        near = [there[stem] for stem in difflib.get_close_matches(path.stem, there, n=3, cutoff=0.7)]
        what = "there is no such file or folder" if path.parent.is_dir() else f"there is no folder {path.parent}"
        fix = f"did you mean {' or '.join(near)}?" if near else "check the path"
        problems.add(name, f"{what} (and it cannot be a name on the hub)", fix)
        return
    dataset, _, config = name.partition(":")
    try:
        data = load_dataset(dataset, config or None, split=split)
    except Exception as error:  # the hub client fails in as many ways as networks and remote files do
        what = (
            f"there is no such file or folder, and loading it as a hub dataset failed too: "
            f"{type(error).__name__}: {_first_line(error)}"
        )
        fix = "check the path; for a hub dataset check the name (owner/name or owner/name:config) and the network"
        problems.add(name, what, fix)
        return
    yield from _dataset_rows(data, name, problems, None)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
