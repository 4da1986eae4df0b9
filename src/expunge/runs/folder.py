"""The run folder: everything that a run wrote, in one place, whole at every moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from expunge.errors import BadInput, ExpungeError, Problem
from expunge.runs.recipe import differences, to_yaml
from expunge.training.journal import LOG

RECIPE, FACTS, FORGOTTEN = "recipe.yaml", "facts.json", "forgotten.json"
REPORT_JSON, REPORT_HTML, MODEL, CHECKPOINTS = "report.json", "report.html", "model", "checkpoints"
LOCK = ".lock"
# Folders and files of methods that train more than once: their logs stay, the rest is needed until the model is there.
STAGES = ("stages", "then", "recover", "after", "reinforced")
LABELS = "labels.safetensors"
OURS = (RECIPE, FACTS, FORGOTTEN, LOG, REPORT_JSON, REPORT_HTML, MODEL, CHECKPOINTS, "trackers", LOCK, *STAGES, LABELS)


class RunFolder:
    """One run on disk.

    Args:
        path: the folder; made when it is opened.

    Files: ``recipe.yaml`` (every setting), ``facts.json`` (versions, hardware, hashes), ``log.jsonl`` (a line per
    step; methods in stages have one in the folder of each), ``checkpoints/`` (only until the model is there),
    ``model/``, ``forgotten.json`` (what training did), ``report.json`` and ``report.html``. Each appears when it is
    complete.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: IO[str] | None = None

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def model(self) -> Path:
        """Where the new model is."""
        return self.path / MODEL

    def has(self, name: str) -> bool:
        """Say whether a file or folder of the run is there."""
        return (self.path / name).exists()

    def is_run(self) -> bool:
        """Say whether a run was started here."""
        return self.has(RECIPE)

    def only_started(self) -> bool:
        """Say whether a run was started here and kept nothing that was computed: it failed, or was stopped at once."""
        kept = any(map(self.has, (MODEL, FORGOTTEN, REPORT_JSON, REPORT_HTML, LABELS))) or any(
            any((self / name).rglob(pattern))
            for name in (CHECKPOINTS, *STAGES)
            for pattern in ("step-*", "*.safetensors")
        )
        return self.is_run() and self.has(FACTS) and not kept

    # ---- before work -----------------------------------------------------------------------------------------------

    def problems(self, inputs: Mapping[str, str | None]) -> list[Problem]:
        """Say why this folder cannot be written to.

        Args:
            inputs: what the run reads, by name; none of it may lie where the run writes.
        """
        found: list[Problem] = []
        here = self.path.resolve()
        for name, source in inputs.items():
            if source is None or not Path(source).exists():
                continue
            there = Path(source).resolve()
            ours = [here / own for own in OURS if (here / own) == there or (here / own) in there.parents]
            if there == here or (there.is_dir() and there in here.parents and (there / "config.json").is_file()):
                found.append(Problem(f"--out {self.path}", f"is the {name} or lies in it", "give another folder"))
            elif ours:
                what = f"would overwrite the {name} {source}"
                found.append(Problem(f"--out {self.path}", what, "give another folder"))
        if self.path.exists() and not self.path.is_dir():
            found.append(Problem(f"--out {self.path}", "is a file", "give the name of a folder"))
        elif self.path.is_dir() and not self.is_run() and any(self.path.iterdir()):
            found.append(Problem(f"--out {self.path}", "is not empty and not a run folder", "give another folder"))
        else:
            parent = next(p for p in (here, *here.parents) if p.exists())
            if not os.access(parent, os.W_OK | os.X_OK):
                found.append(Problem(f"--out {self.path}", f"cannot be made: no right to write in {parent}", _OTHER))
        return found

    def conflict(self, recipe: Mapping[str, Any], hashes: Mapping[str, str]) -> Problem | None:
        """Say what differs between the run that is here and the one that is asked for; None where they are the same."""
        if not self.is_run():
            return None
        fix = "give another folder, or --overwrite to delete that run"
        try:
            stored = yaml.safe_load(self.read_text(RECIPE))
        except yaml.YAMLError:
            return Problem(str(self.path / RECIPE), "is damaged", fix)
        changed = differences(stored if isinstance(stored, dict) else {}, yaml.safe_load(to_yaml(recipe)))
        if changed:
            shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            return Problem(f"--out {self.path}", f"holds a run with another recipe (differs in {shown})", fix)
        if not self.has(FACTS):
            return None
        before = self.read_json(FACTS).get("hashes", {})
        moved = sorted(name for name in {*before, *hashes} if before.get(name) != hashes.get(name))
        if moved:
            what = f"holds a run on other input: the content of {', '.join(moved)} has changed since"
            return Problem(f"--out {self.path}", what, fix)
        return None

    def open(self, recipe: Mapping[str, Any], facts: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Make the folder ready for a run: a new one, or the same one again.

        Args:
            recipe: plain values, every setting resolved.
            facts: versions, hardware and "hashes"; those of an earlier start are kept.
            overwrite: delete another run that is here.

        Raises:
            BadInput: another run is here and has kept something, or someone else is writing to it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            problem = self.conflict(recipe, facts.get("hashes", {}))
            if problem is not None and not overwrite and not self.only_started():
                self.close()
                raise BadInput(problem)
            if problem is not None:
                self.clear()
            # The facts go first: a folder with a recipe is a run, and a run has facts.
            if not self.has(FACTS):
                self.write_json(FACTS, facts)
            if not self.is_run():
                self.write_text(RECIPE, to_yaml(recipe))

    def clear(self) -> None:
        """Delete what a run wrote here, and nothing else."""
        # The recipe goes last: a half-deleted run must still be recognised as one.
        for name in sorted(OURS, key=lambda n: n == RECIPE):
            target = self.path / name
            if name != LOCK and target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            elif name != LOCK:
                target.unlink(missing_ok=True)
        for cache in self.path.glob("reference*.safetensors"):
            cache.unlink()

    def drop_checkpoints(self) -> None:
        """Delete what only a run that is not finished needs."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        for stage in map(self.path.__truediv__, STAGES):
            for checkpoints in list(stage.rglob(CHECKPOINTS)):
                shutil.rmtree(checkpoints, ignore_errors=True)
            for weights in stage.rglob("*.safetensors"):
                weights.unlink(missing_ok=True)
        for cache in (*self.path.glob("reference*.safetensors"), self.path / LABELS):
            cache.unlink(missing_ok=True)

    def _take(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on this system; two runs in one folder are then the user's to avoid
            return
        self._lock = (self.path / LOCK).open("w", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise BadInput(
                Problem(f"--out {self.path}", "is in use by another run", "wait for it, or give another folder")
            ) from None

    def close(self) -> None:
        """Let others write to the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- reading and writing ---------------------------------------------------------------------------------------

    def write_text(self, name: str, text: str) -> Path:
        """Write a file so that a reader sees the old one or the whole new one."""
        target = self.path / name
        partial = target.with_name(f".{name}.{os.getpid()}.part")
        with writing(self.path):
            try:
                with partial.open("w", encoding="utf-8", newline="\n") as handle:
                    handle.write(text)
                    handle.flush()
                    os.fsync(handle.fileno())
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        return target

    def write_json(self, name: str, value: Any) -> Path:
        """Write plain values as JSON."""
        return self.write_text(name, json.dumps(value, ensure_ascii=False, indent=1) + "\n")

    def read_text(self, name: str) -> str:
        """Read a file of the run.

        Raises:
            BadInput: it cannot be read.
        """
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(Problem(str(self.path / name), f"cannot be read: {error}", _AGAIN)) from error

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the run.

        Raises:
            BadInput: it cannot be read, or is damaged.
        """
        try:
            return dict(json.loads(self.read_text(name)))
        except (ValueError, TypeError) as error:
            raise BadInput(Problem(str(self.path / name), f"is damaged: {error}", _AGAIN)) from error


_OTHER = "give another folder, or change its permissions"
_AGAIN = "run again with --overwrite"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says when it cannot write into one clear message.

    Raises:
        BadInput: no permission, or the place is read-only.
        ExpungeError: the disk is full or fails.
    """
    try:
        yield
    except OSError as error:
        raise _plain(path, error) from error
    except Exception as error:
        # safetensors says it in its own exception, with the system's words inside.
        if type(error).__name__ == "SafetensorError" and "os error" in str(error).lower():
            code = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
            raise _plain(path, OSError(code, str(error))) from error
        raise


def _plain(path: Path, error: OSError) -> ExpungeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(path).free / 1e6:.0f} MB are free)"
        return ExpungeError(
            f"{path}: the disk is full{free} -> free some space and run the same command again: it goes on where it was"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BadInput(Problem(str(error.filename or path), "cannot be written: no permission", _OTHER))
    return ExpungeError(f"{error.filename or path}: cannot be read or written: {error.strerror or error}")
