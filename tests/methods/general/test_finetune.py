"""Fine-tuning on the retain set: its own epochs, and the forget set is never read."""

from __future__ import annotations

import pytest

from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_an_epoch_is_one_pass_over_the_retain_set(task: CausalLM, request_: DeletionRequest) -> None:
    done = unlearn(task, request_, "finetune", settings={"epochs": 2, "batch_size": 4, "learning_rate": 1e-2})
    assert done.training is not None
    assert done.training.steps == 2 * 12 / 4
    assert done.training.history[-1]["loss"] < done.training.history[0]["loss"]


def test_the_forget_set_does_not_matter(task: CausalLM, request_: DeletionRequest) -> None:
    assert request_.holdout is not None
    other = DeletionRequest(request_.holdout, request_.retain)
    runs = [unlearn(task, r, "finetune", settings={"max_steps": 3, "batch_size": 4}) for r in (request_, other)]
    one, two = (run.training.history for run in runs)  # type: ignore[union-attr]
    assert one == two


def test_it_needs_what_it_trains_on(task: CausalLM, request_: DeletionRequest) -> None:
    with pytest.raises(ValueError, match="needs a retain set"):
        unlearn(task, DeletionRequest(request_.forget), "finetune")
