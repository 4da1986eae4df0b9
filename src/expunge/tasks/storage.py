"""Writing a model's folder so that it is complete or not there; reading what a run left beside the weights."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from expunge.errors import BadInput, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS = "expunge.json"
CARD = "README.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@contextmanager
def replacing(folder: Path, weights: Iterable[Tensor]) -> Iterator[Path]:
    """Give a scratch folder to write a model to, and move it into place when it is complete.

    A model that was there before is removed only then.

    Args:
        folder: where the model goes.
        weights: what will be written, for their size.

    Yields:
        The folder to write to.

    Raises:
        BadInput: the disk has not enough room, or the folder holds something that is not a model.
    """
    if folder.exists() and not is_model(folder) and any(folder.iterdir()):
        raise BadInput(Problem(str(folder), "is not empty and holds no model", "give a new or empty folder"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() * p.element_size() for p in weights)
    free = shutil.disk_usage(folder.parent).free
    if free < 1.05 * size + (1 << 20):
        raise BadInput(
            Problem(str(folder), f"needs {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free", "free some space")
        )
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    replaced = scratch.with_name(f"{scratch.name}.old")
    try:
        yield scratch
        _open_to_readers(scratch)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(scratch, folder)
    except OSError as error:
        raise BadInput(Problem(str(folder), f"cannot be written: {error}", "check space and permissions")) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def is_model(folder: Path) -> bool:
    """Say whether a folder holds a model of any kind, by its files."""
    return (folder / "config.json").is_file() or "task" in stored_settings(folder)


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write what a later run must know of a model, beside its weights."""
    (folder / SETTINGS).write_text(json.dumps(dict(settings), indent=2), encoding="utf-8")


def stored_settings(folder: Path) -> Mapping[str, Any]:
    """Return what ``write_settings`` wrote; empty where nothing is.

    Raises:
        BadInput: the file is damaged.
    """
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    fix = "delete it or write the model again"
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(Problem(str(file), f"is not valid JSON: {error}", fix)) from error
    if not isinstance(value, dict):
        raise BadInput(Problem(str(file), "holds no settings", fix))
    return value


def check_loading(dtype: str, device: str) -> None:
    """Refuse a precision or a device that cannot be used.

    Raises:
        BadInput: unknown dtype or device, or a CUDA device where there is none.
    """
    if dtype not in DTYPES:
        raise BadInput(Problem("dtype", f"'{dtype}' is not supported", f"use one of {', '.join(DTYPES)}"))
    try:
        torch.device(device)
    except RuntimeError as error:
        raise BadInput(Problem("device", f"'{device}' is not a device", "use cpu, cuda or cuda:0")) from error
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(Problem("device", f"'{device}' was asked for and no CUDA device is there", "use --device cpu"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the library's progress bars and warnings off the terminal; what matters of them is raised by us."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_complete(
    loader: Any, path: str | Path, not_loaded: Callable[[Exception], BadInput], **how: Any
) -> PreTrainedModel:
    """Load what transformers itself would, from safetensors only, and nothing that it had to make up.

    It fills in random numbers where the weights on disk do not fit; a model that is audited must be the one on disk.

    Args:
        loader: an ``AutoModelFor...`` class.
        path: folder or hub name.
        not_loaded: makes the error of a model that cannot be loaded.
        how: further options of ``from_pretrained``.

    Raises:
        BadInput: no such model, or weights that are missing or of another shape than ``config.json`` says.
    """
    try:
        with quiet():
            model, info = loader.from_pretrained(
                path, use_safetensors=True, trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, **how,
            )  # fmt: skip
    except Exception as error:
        raise not_loaded(error) from error
    problems = []
    if absent := sorted(info["missing_keys"]):
        what = f"has no weights for {len(absent)} tensor(s): {', '.join(absent[:3])}"
        problems.append(Problem(f"model {path}", what, "copy the folder again, or give the model it belongs to"))
    if other := sorted(info["mismatched_keys"]):
        name, found, expected = other[0]
        shapes = f"{by(found)}, and config.json says {by(expected)}"
        what = f"has {len(other)} tensor(s) of another shape than its configuration: {name} is {shapes}"
        problems.append(Problem(f"model {path}", what, "put the config.json beside the weights that belongs to them"))
    if problems:
        raise BadInput(problems)
    made: PreTrainedModel = model
    return made


def by(shape: Iterable[int]) -> str:
    """Return a shape in words: 2 x 3."""
    return " x ".join(map(str, shape))


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _open_to_readers(folder: Path) -> None:
    """Give a folder and its files the permissions that new ones usually get; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    folder.chmod(0o777 & ~mask)
    for file in folder.rglob("*"):
        file.chmod((0o777 if file.is_dir() else 0o666) & ~mask)
