"""``expunge doctor``: is this machine ready, and what to do where it is not?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from expunge.cli.terminal import say, show, show_json, show_table


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what to do unless it is fine."""

    name: str
    status: Literal["ok", "note", "problem"]
    found: str
    fix: str = ""


def doctor(as_json: bool = typer.Option(False, "--json", help="Print as JSON.")) -> None:
    """Check this machine: versions, GPU, memory, disk, data."""
    checks: list[Check] = []
    for look in (python, packages, accelerator, memory, disk, data, trackers):
        checks += look()
    broken = [check for check in checks if check.status == "problem"]
    if as_json:
        show_json({"ready": not broken, "checks": [asdict(check) for check in checks]})
    else:
        show_table("", ("", "status", "found"), [(c.name, c.status, c.found) for c in checks])
        for check in checks:
            if check.fix:
                show(f"{check.name}: {check.fix}")
    if broken:
        say(f"{len(broken)} problem(s): {', '.join(check.name for check in broken)}")
        raise typer.Exit(1)


def python() -> list[Check]:
    """Look at the interpreter."""
    return [Check("python", "ok", f"{platform.python_version()} in {sys.prefix}")]


def packages() -> list[Check]:
    """Compare installed versions with those that the tests run with."""
    from expunge.runs.facts import TESTED, versions

    have, found = versions(), []
    for name, tested in TESTED.items():
        version = have.get(name, "")
        if not version:
            found.append(Check(name, "problem", "not installed", f"pip install '{name}=={tested}'"))
        elif version.split("+")[0] != tested:
            fix = f"tested with {tested}; if something breaks: pip install '{name}=={tested}'"
            found.append(Check(name, "note", version, fix))
        else:
            found.append(Check(name, "ok", version))
    return found


def accelerator() -> list[Check]:
    """Look for a GPU."""
    try:
        import torch
    except ImportError as error:
        return [Check("gpu", "problem", f"torch cannot be imported: {error}", "install torch again")]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        return [Check("gpu", "ok", f"{', '.join(names)} (CUDA {torch.version.cuda}, {bf16})")]
    if torch.version.cuda:
        fix = "torch was built for CUDA and sees no device: check the driver with nvidia-smi"
        return [Check("gpu", "note", "none that torch can use", fix)]
    return [Check("gpu", "note", "none; this torch is built for the CPU", "fine for small models")]


def memory() -> list[Check]:
    """Look at memory and cores."""
    import psutil

    from expunge.runs.facts import usable_cores

    free = psutil.virtual_memory().available
    total = psutil.virtual_memory().total
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    # Weights, gradients and two moments of AdamW in float32.
    largest = free / 16 / 1e9
    fix = "" if free >= 2e9 else "the demo needs 2 GB; close other programs"
    return [
        Check("memory", "ok" if not fix else "note", f"{found}: full training of about {largest:.1f}B weights", fix),
        Check("cores", "ok", str(usable_cores())),
    ]


def disk() -> list[Check]:
    """Look at the room for run folders and downloaded models."""
    found = []
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    places: list[tuple[str, Path, Callable[[Path], Path]]] = [
        ("disk here", Path.cwd(), lambda p: p),
        ("disk for models", cache, lambda p: next(q for q in (p, *p.parents) if q.exists())),
    ]
    for name, path, existing in places:
        free = shutil.disk_usage(existing(path)).free
        writable = os.access(existing(path), os.W_OK)
        text = f"{free / 1e9:.1f} GB free in {path}"
        if not writable:
            found.append(Check(name, "note", f"no right to write in {path}", "write elsewhere: --out, or set HF_HOME"))
        elif free < 2e9:
            found.append(Check(name, "note", text, "a run keeps up to four copies of the weights while it trains"))
        else:
            found.append(Check(name, "ok", text))
    return found


def data() -> list[Check]:
    """Look for the published benchmark files."""
    named = os.environ.get("EXPUNGE_DATA")
    if not named:
        fix = "set it to a folder with tofu/ in it, or let `expunge bench` take the files from the hub"
        return [Check("EXPUNGE_DATA", "note", "not set", fix)]
    folder = Path(named).expanduser()
    if not folder.is_dir():
        return [Check("EXPUNGE_DATA", "problem", f"{folder} is not a folder", "correct the variable, or unset it")]
    inside = sorted(p.name for p in folder.iterdir() if p.is_dir())
    if "tofu" not in inside:
        return [Check("EXPUNGE_DATA", "note", f"{folder} has no tofu/", "put the TOFU files into tofu/ there")]
    return [Check("EXPUNGE_DATA", "ok", f"{folder}: {', '.join(inside)}")]


def trackers() -> list[Check]:
    """Look for the optional experiment trackers."""
    from importlib.util import find_spec

    found = [name for name in ("tensorboard", "wandb") if find_spec(name)]
    return [Check("trackers", "ok", ", ".join(found) or "none installed (optional: --set trackers=[tensorboard])")]
