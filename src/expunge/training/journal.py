"""What a run writes down as it goes: one line per step and look, in a file and to trackers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.training.settings import TrainSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = "log.jsonl"


class Journal:
    """The log of a run.

    Args:
        folder: receives ``log.jsonl``; None for no file, as in all processes but the first.
        settings: of the run, which trackers are told.
        accelerator: knows the trackers.
    """

    def __init__(self, folder: Path | None, settings: TrainSettings, accelerator: Accelerator):
        self.folder, self.settings, self.accelerator = folder, settings, accelerator

    def begin(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Start the file with what is known of the steps before, so that a resumed run has the log of a whole one.

        Args:
            records: of steps and looks, in any order.
        """
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = sorted(records, key=lambda record: (record["step"], "probe" in record))
            (self.folder / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def open_trackers(self) -> None:
        """Tell the trackers the settings; nothing without trackers."""
        if self.settings.trackers:
            plain = {
                key: value if isinstance(value, int | float | str | bool) else str(value)
                for key, value in self.settings.model_dump().items()
            }
            self.accelerator.init_trackers("expunge", config=plain)

    def close_trackers(self) -> None:
        """Let the trackers finish; nothing without trackers."""
        if self.settings.trackers:
            self.accelerator.end_training()

    def record(self, record: Mapping[str, Any]) -> None:
        """Add a line."""
        if self.folder is not None:
            with open(self.folder / LOG, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
        if self.settings.trackers:
            numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            self.accelerator.log(numbers, step=int(record["step"]))
