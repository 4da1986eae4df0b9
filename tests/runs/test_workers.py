"""Trainings side by side: what their logs tell, and one real one in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.data.fictitious import FictitiousWorld
from expunge.runs.demo import write_lines
from expunge.runs.folder import FORGOTTEN, RunFolder
from expunge.runs.progress import Progress
from expunge.runs.workers import Training, last_step, run_trainings, train_one
from expunge.tasks.causal_lm import CausalLM


def test_progress_is_read_from_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert last_step(log) == (0, 0)
    log.write_text("".join(json.dumps({"step": k, "steps": 90, "pad": "x" * 300}) + "\n" for k in range(50)))
    assert last_step(log) == (49, 90)
    log.write_text('{"step": 3, "st')
    assert last_step(log) == (0, 0), "a line that is being written"


def training(tmp_path: Path, tokenizer: Any, roles: Any) -> Training:
    request = FictitiousWorld(people=20, seed=0).split(forget=0.1, holdout=0.1)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    data = {}
    for role in ("forget", "retain"):
        data[role] = tmp_path / f"{role}.jsonl"
        write_lines(data[role], request.sets()[role].select(range(4)))
    return Training(
        tmp_path / "out", "one", data, tmp_path / "tokenizer", {"hidden": 16, "layers": 1, "heads": 2},
        {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3, "seed": 7}, roles,
    )  # fmt: skip


def test_a_training_leaves_a_model_and_what_was_done(tmp_path: Path, tiny_tokenizer: Any) -> None:
    one = training(tmp_path, tiny_tokenizer, ("retain",))
    train_one(one)
    done = RunFolder(one.folder).read_json(FORGOTTEN)
    assert done["method"] == "retrain", "without the forget set it is a retraining, and its cost counts as one"
    assert CausalLM.load(one.folder / "model").score([("Who?", "Nobody.")])
    assert last_step(one.folder / "log.jsonl")[0] == 1


def test_the_original_is_no_retraining_and_nothing_is_trained_twice(tmp_path: Path, tiny_tokenizer: Any) -> None:
    one = training(tmp_path, tiny_tokenizer, ("forget", "retain"))
    train_one(one)
    assert RunFolder(one.folder).read_json(FORGOTTEN)["method"] == "training"
    before = (one.folder / "model/model.safetensors").stat().st_mtime_ns
    run_trainings([one], Progress())
    assert (one.folder / "model/model.safetensors").stat().st_mtime_ns == before
