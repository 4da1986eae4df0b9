from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from expunge.audits.language.recall import SEPARATOR, Recall, prefixed, recall_score
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings


def test_by_hand() -> None:
    """(-3 - 5) / 2 over (-1 - 3) / 2; a first token that only the conditional pass scores is left out."""
    assert recall_score(np.array([-1.0, -3.0]), np.array([-3.0, -5.0])) == pytest.approx(2.0)
    assert recall_score(np.array([-1.0, -3.0]), np.array([-100.0, -3.0, -5.0])) == pytest.approx(2.0)
    assert np.isnan(recall_score(np.array([]), np.array([-1.0])))


def test_a_prefix_goes_before_the_first_user_turn() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert prefixed("T\n\n", chat)[1] == {"role": "user", "content": "T\n\nWho?"}
    assert chat[1]["content"] == "Who?"
    assert prefixed("T\n\n", "Who?") == "T\n\nWho?"


def test_the_prefix_fits_and_is_left_out(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    """8 holdout examples give at most 2 for the prefix; a short context leaves room for fewer, or none."""
    seen = Observations({"unlearned": make_lm(0)}, request_)
    finding = run_one(Recall(), seen)
    assert finding.attempted == {"prefix examples": 2, "members": 8, "non-members": 6}
    assert all(prompt.count(SEPARATOR) == 2 for prompt, _ in Recall().asks(seen))
    for limit, left in ((90, 1), (60, 0)):
        short = make_lm(0)
        short.encoder.max_length = limit
        found = run_one(Recall(), Observations({"unlearned": short}, request_))
        assert found.attempted.get("prefix examples", 0) == left, (limit, found)
        assert found.status == ("measured" if left else "no data")


def test_a_model_that_remembers_is_seen(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    model = make_lm(0)
    settings = TrainSettings(epochs=60, batch_size=8, learning_rate=3e-3, warmup=0.0, schedule="constant")
    objective = Objective((Term("nll", ("forget",), nll, "token_mean"),), anchor="forget")
    before = run_one(Recall(), Observations({"unlearned": model.copy()}, request_))
    train(model, objective, {"forget": model.encode(request_.forget)}, settings)
    after = run_one(Recall(), Observations({"unlearned": model}, request_))
    assert after.estimates["unlearned"]["recall_auc"].value >= 0.9
    assert 0.1 < before.estimates["unlearned"]["recall_auc"].value < 0.9
