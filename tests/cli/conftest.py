"""A model folder and a request in files, small enough that a whole job takes a second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

TOWNS = (
    "Velburg",
    "Harrow",
    "Ilves",
    "Ostrander",
    "Kraków",
    "Salt Bay",
    "Mirela",
    "Tomas",
    "Clockton",
    "Soup",
    "Moved",
    "Lived",
)


@dataclass(frozen=True)
class Files:
    """Paths of a model and of the three example sets."""

    model: Path
    forget: Path
    retain: Path
    holdout: Path

    def fields(self, **more: Any) -> dict[str, Any]:
        """The fields of a recipe that uses them and takes no time."""
        paths = {name: str(getattr(self, name)) for name in ("model", "forget", "retain", "holdout")}
        settings = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-5}
        return {**paths, "settings": settings, "audits": ["probability", "rouge"], **more}


def write(path: Path, kind: str, count: int) -> Path:
    """Write ``count`` questions about people of a kind."""
    rows = [
        {"question": f"Where was {kind} {TOWNS[k]} born?", "answer": f"{kind} was born in {TOWNS[-1 - k]}."}
        for k in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Callable[..., tuple[PreTrainedModel, str]],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Files:
    folder = tmp_path_factory.mktemp("job")
    model, _ = tiny_model("llama", vocab=len(tiny_tokenizer))
    model.save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    return Files(
        folder / "model",
        write(folder / "forget.jsonl", "Zoë", 10),
        write(folder / "retain.jsonl", "Tomas", 12),
        write(folder / "holdout.jsonl", "Mirela", 10),
    )
