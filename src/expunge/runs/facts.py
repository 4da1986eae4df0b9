"""What a run depended on besides its recipe: versions, hardware, and the hashes of model and data."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

# What the tests run with, as constraints.txt has it (a test holds the two together).
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
    "datasets": "5.2.0",
    "tokenizers": "0.23.3",
    "safetensors": "0.8.0",
    "numpy": "2.4.6",
    "scikit-learn": "1.9.1",
    "scipy": "1.17.1",
}


def versions() -> dict[str, str]:
    """Return name -> version of everything that results can depend on; what is not installed is left out."""
    found = {"expunge": _version("expunge"), "python": platform.python_version()}
    found |= {name: _version(name) for name in TESTED}
    return {name: version for name, version in found.items() if version}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def hardware() -> dict[str, Any]:
    """Describe the machine without naming it: system, processor, usable cores, memory, accelerators."""
    import psutil
    import torch

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def processor() -> str:
    """Name the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> str:
    """Return the time, to the second, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def commit() -> str:
    """Name the commit that this code is of, with "+" behind it where the source differs from it; "" where unknown."""
    here = Path(__file__).resolve()

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # installed code may lie in somebody else's repository
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder: of its files' names and hashes, sorted by name."""
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {sha256(file)}\n".encode())
    return digest.hexdigest()


def weights_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a model's weights.

    Args:
        path: a model folder, or the name of a model on the hub that was loaded before.

    Returns:
        Of a single weight file, what ``sha256sum`` says of it; of several, in sub-folders too, the hash of the lines
        "name hash", sorted. "" where the files cannot be found.
    """
    folder = Path(path)
    if not folder.is_dir():
        try:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(path), local_files_only=True))
        except (OSError, ValueError):
            return ""
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) == 1:
        return sha256(files[0])
    lines = "".join(f"{f.relative_to(folder).as_posix()} {sha256(f)}\n" for f in files)
    digest = hashlib.sha256(lines.encode())
    return digest.hexdigest() if files else ""


def data_sha256(source: str | Path) -> str:
    """Return the SHA-256 of a file or folder of examples; "" for a name on the hub."""
    path = Path(source)
    return sha256(path) if path.exists() else ""
