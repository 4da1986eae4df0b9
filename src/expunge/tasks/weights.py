"""Whether a model's weights can be used: they are there, complete, and numbers; on disk, and once it is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from expunge.errors import BadInput, Problem
from expunge.tasks.base import Task
from expunge.tasks.storage import first_line

INDEX = ".safetensors.index.json"
# Files that other programs keep weights in, and that can run code when they are read.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
AGAIN = "copy or download it again"
EARLIER = "give a checkpoint from before training broke down"


def check_weights(path: str | Path) -> None:
    """Read every tensor of a model once and refuse what cannot be used.

    Args:
        path: a folder; of a name on the hub nothing is known before it is loaded.

    Raises:
        BadInput: no weights, weights in files that can run code, a part that is not there or cut off, or values that
            are NaN or infinite. All at once, but one for each file.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    problems = [*_parts(folder), *(problem for file in _files(folder) if (problem := _of_file(file)) is not None)]
    if problems:
        raise BadInput(problems)


def check_values(task: Task) -> None:
    """Refuse a model in memory whose weights are no numbers.

    Args:
        task: the model; every weight is read once.

    Raises:
        BadInput: weights that are NaN or infinite.
    """
    weights = dict(task.named_parameters())
    broken = [name for name, weight in weights.items() if not _finite(weight.detach())]
    if broken:
        raise BadInput(Problem(f"model {task.source}", _broken(broken, len(weights)), EARLIER))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def _parts(folder: Path) -> list[Problem]:
    """Find weights that are not there at all, and parts that an index names and that are not there."""
    if not _files(folder):
        pickled = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in PICKLED)
        if not pickled:
            return [Problem(f"model {folder}", "holds no weights", "give a folder with *.safetensors")]
        what = f"holds its weights in {pickled[0]}, which can run code when it is read"
        fix = "load it where you trust it, and write it again with save_pretrained(folder), as safetensors"
        return [Problem(f"model {folder}", what, fix)]
    problems = []
    for index in sorted(folder.rglob(f"*{INDEX}")):
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            problems.append(Problem(str(index), "cannot be read", AGAIN))
            continue
        lacking = [name for name in names if not (index.parent / name).is_file()]
        if lacking:
            what = f"names {len(lacking)} file(s) that are not there: {', '.join(lacking[:3])}"
            problems.append(Problem(str(index), what, "copy or download them too"))
    return problems


def _of_file(file: Path) -> Problem | None:
    """Return what is wrong with one file of weights, or None."""
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            broken = [name for name in names if not _finite(tensors.get_tensor(name))]
    except (SafetensorError, OSError, ValueError) as error:
        return Problem(str(file), f"is damaged or cut off ({first_line(error)})", AGAIN)
    if not broken:
        return None
    return Problem(str(file), _broken(broken, len(names)), EARLIER)


def _broken(broken: list[str], count: int) -> str:
    return f"has NaN or infinite values in {len(broken)} of {count} tensor(s), such as {broken[0]}"


def _finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # eight bits: torch has few operations for them
        tensor = tensor.to(torch.float32)
    # NaN carries over to both ends; many times as fast as asking of every value.
    return all(map(math.isfinite, (float(end) for end in tensor.aminmax())))
