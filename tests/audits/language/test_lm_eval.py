from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.audits.language.lm_eval import LMEval, _estimates, harness_model
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one, select_audits
from expunge.errors import BadInput, MissingExtra
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

installed = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
TASK = """\
task: towns
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: multiple_choice
training_split: train
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
"""
TOWNS = ["Velburg", "Harrow Bay", "Salt Harbour", "Ostrander"]


def own_task(folder: Path) -> Path:
    rows = [{"question": f"Person {k} lives in", "choices": TOWNS, "label": k % 4} for k in range(12)]
    (folder / "towns.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "towns.yaml").write_text(TASK.format(file=folder / "towns.jsonl"))
    return folder


def request() -> DeletionRequest:
    return DeletionRequest(Dataset.from_list([{"id": "a", "prompt": "x", "answer": "y"}]))


@installed
def test_a_model_that_learnt_the_task_scores_on_it(make_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    model, ignorant = make_lm(0), make_lm(1)
    rows = [{"id": str(k), "prompt": f"Person {k} lives in", "answer": TOWNS[k % 4]} for k in range(12)]
    settings = TrainSettings(epochs=60, batch_size=12, learning_rate=3e-3, warmup=0.0, schedule="constant")
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    train(model, objective, {"retain": model.encode(Dataset.from_list(rows))}, settings)
    audit = LMEval(LMEval.Config(tasks=("towns",), include=own_task(tmp_path), batch_size=12))
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    finding = run_one(audit, Observations({"unlearned": model, "oracle": ignorant}, request()))
    assert finding.status == "measured", finding.note
    assert finding.estimates["unlearned"]["towns/acc"].value >= 0.9
    assert finding.estimates["unlearned"]["towns/acc"].n == 12
    assert finding.estimates["oracle"]["towns/acc"].value < 0.8
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


@installed
def test_requests_go_in_batches_with_the_models_own_tokenizer(
    make_lm: Callable[..., CausalLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lm(0)
    view = harness_model(model, 12)
    assert view.model is model.model
    assert view.tokenizer is model.tokenizer
    assert view.batch_size == 12
    sizes: list[int] = []
    forward = model.model.forward

    def counted(*args: object, **named: object) -> object:
        sizes.append(len(args[0] if args else named["input_ids"]))
        return forward(*args, **named)

    monkeypatch.setattr(model.model, "forward", counted)
    audit = LMEval(LMEval.Config(tasks=("towns",), include=own_task(tmp_path), batch_size=12))
    assert run_one(audit, Observations({"unlearned": model}, request())).status == "measured"
    # options of one token share the pass of their question, so there may be fewer rows than options
    assert 12 <= sum(sizes) <= 12 * 4
    assert len(sizes) <= 4


def test_numbers_are_read_with_their_errors() -> None:
    found = _estimates(
        {
            "results": {"t": {"alias": "t", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 0.25, "length": 9}},
            "n-samples": {"t": {"original": 40, "effective": 20}},
        }
    )
    assert set(found) == {"t/acc", "t/em (strict)"}
    assert found["t/acc"].low == pytest.approx(0.5 - 0.196, abs=1e-3)
    assert (found["t/em (strict)"].value, found["t/em (strict)"].low, found["t/em (strict)"].n) == (0.25, None, 20)


@installed
@pytest.mark.slow
def test_an_unknown_task_is_said_before_work(scripted: Callable, tmp_path: Path) -> None:
    audit = LMEval(LMEval.Config(tasks=("town",), include=own_task(tmp_path)))
    with pytest.raises(BadInput, match="towns"):
        audit.prepare(Observations({"unlearned": scripted()}, request()))


def test_without_the_harness_the_extra_is_named(scripted: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"expunge\[lm-eval\]"):
        LMEval(LMEval.Config(tasks=("arc_easy",))).prepare(Observations({"unlearned": scripted()}, request()))


def test_without_tasks_there_is_no_data(scripted: Callable) -> None:
    assert run_one(LMEval(), Observations({"unlearned": scripted()}, request())).status == "no data"
    with pytest.raises(BadInput, match="not a folder"):
        select_audits(["lm_eval"], {"lm_eval": {"include": "absent"}})
