"""The logit lens on a model whose output was silenced and whose layers were not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from expunge.audits.base import Finding
from expunge.audits.language.logit_lens import LogitLens
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings


@pytest.fixture(scope="module")
def original(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> CausalLM:
    """A model that has learnt the forget set."""
    task = make_lm(0)
    objective = Objective((Term("nll", ("forget",), nll, "token_mean"),))
    settings = TrainSettings(epochs=40, batch_size=8, learning_rate=1e-2, warmup=0.1)
    train(task, objective, {"forget": task.encode(request_.forget)}, settings)
    return task


def audit(unlearned: CausalLM, original: CausalLM, request: DeletionRequest, oracle: CausalLM) -> Finding:
    models = {"unlearned": unlearned, "original": original, "oracle": oracle}
    finding = run_one(LogitLens(), Observations(models, request))
    assert finding.status == "measured", finding.note
    return finding


def value(finding: Finding, model: str, scalar: str) -> float:
    found = finding.estimates[model][scalar].value
    assert found is not None
    return found


def test_a_silenced_head_is_seen_through(
    original: CausalLM, request_: DeletionRequest, make_lm: Callable[..., CausalLM]
) -> None:
    silenced = original.copy()
    with torch.no_grad():
        silenced.model.lm_head.weight.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    finding = audit(silenced, original, request_, make_lm(5))
    assert value(finding, "original", "probability_output") > 0.5
    assert value(finding, "unlearned", "probability_output") < 0.05
    assert value(finding, "unlearned", "probability_original_head") > 0.5
    assert value(finding, "oracle", "probability_best") < 0.05
    (evidence,) = finding.evidence
    assert evidence.statistic == "lens_nll"
    known = evidence.values["original"]
    assert all(abs(evidence.values["unlearned"][i] - known[i]) < 1.0 for i in known)
    assert all(evidence.values["oracle"][i] > known[i] + 1 for i in known)
    assert evidence.control["unlearned"]


def test_a_last_block_that_erases_leaves_the_block_below(
    original: CausalLM, request_: DeletionRequest, make_lm: Callable[..., CausalLM]
) -> None:
    erased = original.copy()
    with torch.no_grad():
        for p in erased.model.model.layers[-1].parameters():
            if p.dim() > 1:
                p.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    finding = audit(erased, original, request_, make_lm(5))
    assert value(finding, "unlearned", "rank_hidden") > value(finding, "unlearned", "rank_output")
    rows = finding.tables[0].rows
    assert [row[0] for row in rows] == ["block 1 of 2 read", "block 2 of 2 read"]


def test_a_model_of_another_shape_is_read_with_its_own_head(
    original: CausalLM, request_: DeletionRequest, tiny_model: Callable, make_tiny_tokenizer: Callable
) -> None:
    other = CausalLM(tiny_model("llama", vocab=384, hidden=16)[0], make_tiny_tokenizer())
    finding = audit(other, original, request_, original)
    assert finding.estimates["unlearned"]["probability_original_head"].value is None
    assert "another shape" in finding.estimates["unlearned"]["probability_original_head"].note


def test_a_model_that_cannot_be_opened_is_no_data(request_: DeletionRequest, scripted: Callable) -> None:
    finding = run_one(LogitLens(), Observations({"unlearned": scripted()}, request_))
    assert finding.status == "no data"
    assert "offers no weights" in finding.note
