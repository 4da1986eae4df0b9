"""The files of TOFU: the splits, the perturbed answers, and what the model must still know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from expunge.data.files import read_examples
from expunge.errors import BadInput, Problem
from expunge.registry import near_names
from expunge.requests.request import DeletionRequest

SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HUB = "locuslab/TOFU"
AUTHOR_ROWS = 20  # every author has twenty questions, in order


@dataclass(frozen=True)
class TofuSplit:
    """One forgetting task of TOFU.

    Attributes:
        name: "forget01", "forget05" or "forget10".
        train: what methods are given: the forget set and the rows that are kept.
        audit: what audits read: the forget set with paraphrased and wrong answers, and the kept rows that have them.
        knowledge: real authors and world facts, with wrong answers.
        kept_rows: how many kept rows there are in the published split, and how many are used.
    """

    name: str
    train: DeletionRequest
    audit: DeletionRequest
    knowledge: Mapping[str, Dataset]
    kept_rows: tuple[int, int]


def find(data: str | None) -> str:
    """Return where the files are: the given folder or tofu/ in it, ``$EXPUNGE_DATA/tofu``, or the hub.

    Raises:
        BadInput: the given folder does not exist, or has no full.json.
    """
    if data is not None:
        folder = Path(data).expanduser()
        if not folder.is_dir():
            raise BadInput(
                Problem("--data", f"{data} is not a folder", "give the folder with forget01.json and the rest")
            )
        there = next((place for place in (folder, folder / "tofu") if (place / "full.json").is_file()), None)
        if there is None:
            what = f"{data} holds no full.json, and no tofu/ with it"
            raise BadInput(Problem("--data", what, "give the folder with the published files"))
        return str(there)
    if (root := os.environ.get("EXPUNGE_DATA")) and (Path(root) / "tofu").is_dir():
        return str(Path(root) / "tofu")
    return HUB


def check_split(name: str) -> None:
    """Raise BadInput if TOFU has no task of this name."""
    if name not in SPLITS:
        raise BadInput(Problem("--split", f"'{name}' is not a TOFU split", near_names(name, list(SPLITS))))


def load_split(where: str, name: str, kept: int | None = None) -> TofuSplit:
    """Read one task.

    Args:
        where: a folder with the published JSON files, or the hub name.
        name: "forget01", "forget05" or "forget10".
        kept: use only so many kept rows, those with wrong answers first; None for all.

    Raises:
        BadInput: unknown split, files that are missing or damaged, or a hub that cannot be reached.
    """
    check_split(name)
    if where != HUB:
        return _read_split(where, name, kept)
    try:
        return _read_split(where, name, kept)
    except BadInput as error:
        fix = "give a folder with the published files, or set EXPUNGE_DATA to one with tofu/ in it"
        raise BadInput([*error.problems, Problem("--data", "is not given, so the hub was asked", fix)]) from error


def _read_split(where: str, name: str, kept: int | None) -> TofuSplit:

    def read(part: str) -> list[dict[str, Any]]:
        if where == HUB:
            source, split = f"{HUB}:{part}", "train"
            rows = read_examples(source, split=split, role=part, duplicates="drop").to_list()
        else:
            rows = read_examples(Path(where) / f"{part}.json", role=part, duplicates="drop").to_list()
        return [{k: v for k, v in row.items() if not k.startswith("source_")} for row in rows]

    author = {row["id"]: f"author-{k // AUTHOR_ROWS:03d}" for k, row in enumerate(read("full"))}
    forget, perturbed = read(name), read(f"{name}_perturbed")
    retain, checked = read(SPLITS[name]), read("retain_perturbed")
    for rows in (forget, perturbed, retain, checked):
        for row in rows:
            row["group"] = author.get(row["id"], "unknown")
    total = len(retain)
    known = {row["id"] for row in retain}
    checked = [row for row in checked if row["id"] in known]
    if kept is not None:
        first = {row["id"] for row in checked}
        retain = sorted(retain, key=lambda row: row["id"] not in first)[: max(kept, 1)]
        known = {row["id"] for row in retain}
        checked = [row for row in checked if row["id"] in known]
    return TofuSplit(
        name=name,
        train=DeletionRequest(Dataset.from_list(forget), Dataset.from_list(retain), scenario="entity", name=name),
        audit=DeletionRequest(Dataset.from_list(perturbed), Dataset.from_list(checked), scenario="entity", name=name),
        knowledge={part: Dataset.from_list(read(f"{part}_perturbed")) for part in ("real_authors", "world_facts")},
        kept_rows=(total, len(retain)),
    )
