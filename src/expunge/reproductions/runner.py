"""Runs a reproduction seed by seed; a kill loses at most the seed that was running."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, ExpungeError, Problem
from expunge.registry import Registry
from expunge.reports.leaderboard import over_seeds
from expunge.reproductions.base import Reproduction, Result, Workbench
from expunge.runs.facts import commit, hardware, now, versions
from expunge.runs.folder import RunFolder
from expunge.runs.progress import Progress

REPRODUCTIONS: Registry[Reproduction] = Registry("expunge.reproductions", Reproduction, "reproduction")  # type: ignore[type-abstract]


def reproduce(
    reproduction: str | Reproduction,
    *,
    seeds: Sequence[int] = (),
    quick: bool = False,
    out: str | Path = "runs/reproductions",
    data: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run a reproduction and judge what came out.

    Args:
        reproduction: its id, or one that was made.
        seeds: which to run; those that the reproduction names if empty.
        quick: run the smaller version.
        out: receives ``<id>/result.json``, ``<id>/seed-<n>.json`` as each seed ends, and ``shared/`` with what several
            reproductions use. A seed that was finished by the same code is not run again.
        data: folder of published data.
        progress: hears what is being done.

    Returns:
        The result; that the claim does not hold is one, and no error.

    Raises:
        BadInput: unknown reproduction, repeated seeds, or data that a reproduction needs is missing.
        ExpungeError: a seed measured something that is no number.
        Exception: whatever stopped a seed. A crash says nothing of the claim; the seeds before it are kept.
    """
    chosen = REPRODUCTIONS.get(reproduction)() if isinstance(reproduction, str) else reproduction
    asked = tuple(seeds) or chosen.seeds
    if len(set(asked)) < len(asked):
        raise BadInput(Problem("seeds", f"{list(asked)} repeats one", "name each once"))
    progress = progress or Progress()
    root = Path(out)
    folder = RunFolder(root / chosen.id)
    state = {"quick": quick, "code": _code(chosen), "expunge": versions()["expunge"]}
    records = {}
    for number, seed in enumerate(asked, 1):
        progress.stage(f"{chosen.id}: seed {seed} ({number} of {len(asked)})")
        stem = f"{'quick-' if quick else ''}seed-{seed}"
        bench = Workbench(folder / stem, root / "shared", quick, Path(data) if data else None, progress)
        records[seed] = _seed(chosen, seed, bench, folder, f"{stem}.json", state)
    runs = {seed: record["measured"] for seed, record in records.items()}
    result = Result(
        name=chosen.id,
        title=chosen.title,
        paper=chosen.paper,
        claim=chosen.claim,
        checks=tuple(chosen.judge(list(runs.values()))),
        measured={key: over_seeds([run.get(key) for run in runs.values()]) for key in _keys(runs)},
        runs=runs,
        minutes=sum(record["seconds"] for record in records.values()) / 60,
        quick=quick,
        facts={
            "date": max(record["date"] for record in records.values()),
            "command": _command(chosen, asked, quick),
            "commit": next(reversed(records.values()))["commit"],
            "versions": versions(),
            "hardware": hardware(),
        },
    )
    folder.write_json("quick-result.json" if quick else "result.json", result.to_dict())
    return result


def _seed(
    chosen: Reproduction, seed: int, bench: Workbench, folder: RunFolder, name: str, state: Mapping[str, Any]
) -> dict[str, Any]:
    if folder.has(name):
        record = folder.read_json(name)
        if all(record.get(key) == value for key, value in state.items()):
            return record
        bench.progress.say(f"{chosen.id} was changed since seed {seed} was run: it is run again")
    bench.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    measured = {key: float(value) for key, value in chosen.run(seed, bench).items()}
    wrong = {key: value for key, value in measured.items() if not math.isfinite(value)}
    if wrong or not measured:
        shown = ", ".join(f"{key} = {value}" for key, value in wrong.items()) or "nothing"
        raise ExpungeError(f"{chosen.id}, seed {seed}: measured {shown}, which says nothing of the claim")
    record = {
        **state,
        "seed": seed,
        "measured": measured,
        "seconds": time.perf_counter() - began,
        "date": now(),
        "commit": commit(),
    }
    folder.write_json(name, record)
    return record


def _keys(runs: Mapping[int, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for run in runs.values() for key in run))


def _code(chosen: Reproduction) -> str:
    """Hash the file of the reproduction, so that its old numbers are not taken for those of a changed one."""
    module = importlib.import_module(type(chosen).__module__)
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]


def _command(chosen: Reproduction, seeds: Sequence[int], quick: bool) -> str:
    given = "" if tuple(seeds) == tuple(chosen.seeds) else f" --seeds {','.join(map(str, seeds))}"
    return f"expunge reproduce {chosen.id}{given}{' --quick' if quick else ''}"
