"""The log of a run: whole lines, in order, also after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.training.journal import LOG, Journal
from expunge.training.settings import TrainSettings


class Told:
    """Trackers that remember what they were told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def init_trackers(self, name: str, config: dict[str, Any]) -> None:
        self.heard.append((name, config))

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.heard.append((step, numbers))

    def end_training(self) -> None:
        self.heard.append("end")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


def test_a_step_stands_before_the_look_at_it_and_a_resume_forgets_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", TrainSettings(), Told())  # type: ignore[arg-type]
    journal.begin([])
    assert lines(tmp_path / "run") == []
    known = [{"step": 2}, {"probe": True, "step": 1}, {"step": 1}]
    journal.begin(known)
    journal.record({"step": 3})
    assert lines(tmp_path / "run") == [{"step": 1}, {"probe": True, "step": 1}, {"step": 2}, {"step": 3}]


def test_trackers_hear_numbers_alone_and_only_if_there_are_any(tmp_path: Path) -> None:
    told = Told()
    silent = Journal(None, TrainSettings(), told)  # type: ignore[arg-type]
    silent.open_trackers()
    silent.begin([])
    silent.record({"step": 1, "loss": 2.0})
    silent.close_trackers()
    assert told.heard == []
    journal = Journal(None, TrainSettings(trackers=("tensorboard",)), told)  # type: ignore[arg-type]
    journal.open_trackers()
    journal.record({"step": 1, "loss": 2.0, "probe": True, "why": "words"})
    journal.close_trackers()
    (name, config), step, end = told.heard
    assert name == "expunge"
    assert all(isinstance(value, int | float | str | bool) for value in config.values())
    assert (step, end) == ((1, {"step": 1, "loss": 2.0}), "end")
