"""Retraining: from new seeded weights, or from a base that never saw the forget set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

STILL = {"max_steps": 1, "learning_rate": 1e-30, "weight_decay": 0.0}


def same(one: Any, other: Any) -> bool:
    values = other.model.state_dict()
    return all(torch.allclose(v, values[n], atol=1e-7) for n, v in one.model.state_dict().items())


def test_it_starts_from_fresh_weights_that_the_seed_makes(task: CausalLM, request_: DeletionRequest) -> None:
    done = unlearn(task, request_, "retrain", settings={**STILL, "seed": 3})
    assert same(done.model, task.fresh(3))
    assert not same(done.model, task)
    assert done.removal_level == "exact"


def test_nothing_of_the_trained_model_survives(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2}
    one = unlearn(task, request_, "retrain", settings=settings)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.zero_()
    two = unlearn(task, request_, "retrain", settings=settings)
    assert all(torch.equal(v, two.model.model.state_dict()[n]) for n, v in one.model.model.state_dict().items())


def test_it_starts_from_a_base_and_joins_texts_as_the_model_does(
    make_task: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    base = make_task(seed=9)
    base.save(tmp_path / "base")
    plain = make_task()
    task = CausalLM(plain.model, plain.tokenizer, template="Q: {prompt}\nA: {answer}")
    done = unlearn(task, request_, "retrain", settings={**STILL, "base": str(tmp_path / "base")})
    assert same(done.model, base)
    assert done.model.encoder.template == task.encoder.template  # type: ignore[attr-defined]
    first = done.training.history[0]["loss"]  # type: ignore[union-attr]
    again = unlearn(
        CausalLM(base.model, base.tokenizer, template=task.encoder.template), request_, "finetune", settings=STILL
    )
    assert first == pytest.approx(again.training.history[0]["loss"])  # type: ignore[union-attr]


def test_a_base_that_is_not_there_is_named(task: CausalLM, request_: DeletionRequest, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere"):
        unlearn(task, request_, "retrain", settings={"base": str(tmp_path / "nowhere")})
