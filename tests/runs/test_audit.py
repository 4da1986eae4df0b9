from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import expunge
from expunge.audits.base import Evidence, Finding
from expunge.audits.suite import AuditResult
from expunge.data.request_files import read_request
from expunge.errors import BadInput
from expunge.reports.report import RunReport
from expunge.requests.request import DeletionRequest
from expunge.runs.audit import AuditReport, audit, conclude
from expunge.runs.progress import Progress
from expunge.tasks.causal_lm import CausalLM


@pytest.fixture(scope="module")
def request_(files: Any) -> DeletionRequest:
    return read_request(str(files.forget), str(files.retain), str(files.holdout))


@pytest.fixture(scope="module")
def trained(
    tiny_model: Callable[..., tuple[PreTrainedModel, str]],
    tiny_tokenizer: PreTrainedTokenizerFast,
    request_: DeletionRequest,
) -> Callable[..., CausalLM]:
    """Makes a model that knows some of the example sets by heart."""

    def train(*roles: str, seed: int) -> CausalLM:
        with torch.random.fork_rng():
            task = CausalLM(tiny_model(vocab=len(tiny_tokenizer), seed=seed)[0], tiny_tokenizer, source="+".join(roles))
            pairs = [(row["prompt"], row["answer"]) for role in roles for row in getattr(request_, role).to_list()]
            optimiser = torch.optim.AdamW(task.model.parameters(), lr=5e-3)
            for _ in range(60):
                optimiser.zero_grad()
                task.answer_nll(pairs).backward()
                optimiser.step()
        task.model.eval()
        return task

    return train


@pytest.fixture(scope="module")
def knowing(trained: Callable[..., CausalLM]) -> CausalLM:
    return trained("forget", "retain", seed=1)


@pytest.fixture(scope="module")
def ignorant(trained: Callable[..., CausalLM]) -> CausalLM:
    return trained("retain", seed=2)


class Heard(Progress):
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def stage(self, title: str) -> None:
        self.stages.append(title)

    def step(self, done: int, total: int, values: Any = "") -> None:
        self.steps.append((done, total))


def test_the_public_name_is_this_function() -> None:
    assert expunge.audit is audit


def test_an_untouched_model_is_not_removed(
    knowing: CausalLM, ignorant: CausalLM, request_: DeletionRequest, tmp_path: Path
) -> None:
    heard = Heard()
    before = {name: p.clone() for name, p in knowing.named_parameters()}
    found = audit(knowing, request_, original=knowing, oracles=[ignorant], audits=["probability"], progress=heard)
    assert isinstance(found, AuditReport)
    assert found.verdict.result == "not removed"
    assert str(found).startswith("Not removed")
    assert found.finding("probability").status == "measured"
    assert found.counts["unlearned"].sequences_run == 32
    assert found.cost["unlearned"].forwards > 0
    assert heard.stages[0] == "loading models"
    assert heard.steps[-1][0] == heard.steps[-1][1]
    assert all(torch.equal(before[name], p) for name, p in knowing.named_parameters())
    page = found.to_html(tmp_path / "report.html")
    assert "Not removed" in page.read_text(encoding="utf-8")
    report = RunReport.from_json(found.to_json())
    assert report.removal_level == "unknown"
    assert report.models["oracle"].path == "retain"
    assert report.request.forget == 10
    assert [s.role for s in report.samples] == []  # nothing was generated for probability alone


def test_one_oracle_may_stand_alone(knowing: CausalLM, ignorant: CausalLM, request_: DeletionRequest) -> None:
    found = audit(knowing, request_, oracles=ignorant, audits=["probability"])
    assert "oracle" in found.report.models


class Refuses:
    def __init__(self, inner: CausalLM):
        self.inner = inner

    def score(self, pairs: Sequence[Any]) -> list[Any]:
        return self.inner.score(pairs)

    def generate(self, prompts: Sequence[Any], max_new_tokens: Sequence[int]) -> list[str]:
        return ["I cannot say." for _ in prompts]

    def copy(self) -> Refuses:
        return Refuses(self.inner.copy())


def test_a_model_that_merely_refuses_is_not_removed(
    knowing: CausalLM, ignorant: CausalLM, request_: DeletionRequest
) -> None:
    found = audit(
        Refuses(knowing), request_, original=knowing, oracles=[ignorant], audits=["probability", "rouge", "relearning"]
    )
    assert found.report.removal_level == "guard"
    assert found.verdict.result == "not removed"
    assert found.verdict.by_tests == "not removed"
    assert found.finding("relearning").status == "crashed"
    assert any("Crashed: relearning (" in note for note in found.report.notes)
    assert {s.answers["unlearned"] for s in found.report.samples} == {"I cannot say."}


def test_beside_an_audit_that_crashed_nothing_is_removed(ignorant: CausalLM, request_: DeletionRequest) -> None:
    levels = {"unlearned": 0.1, "oracle": 0.1, "original": 0.9}
    values = {name: {f"x{k}": level for k in range(40)} for name, level in levels.items()}
    measured = Finding("probability", evidence=[Evidence("probability", "forget", values)])
    report = audit(ignorant, request_, audits=["probability"]).report
    alone = conclude(report, request_, AuditResult([measured]))
    assert alone.verdict.result == "removed"
    beside = conclude(report, request_, AuditResult([measured, Finding("rouge", "crashed", note="NaN")]))
    assert beside.verdict.result == "inconclusive"
    assert "rouge crashed" in beside.report.verdict["sentence"]


def test_everything_wrong_is_said_before_compute(ignorant: CausalLM, request_: DeletionRequest) -> None:
    before = ignorant.cost.forwards
    with pytest.raises(BadInput, match="did you mean rouge"):
        audit(ignorant, request_, audits=["ruge"])
    with pytest.raises(BadInput, match="removal_level"):
        audit(ignorant, request_, removal_level="total")
    with pytest.raises(BadInput, match=r"request: is a str -> make one with expunge.read_request"):
        audit(ignorant, "forget.jsonl")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"give a list: audits=\['rouge'\]"):
        audit(ignorant, request_, audits="rouge")
    with pytest.raises(BadInput, match="VerdictSettings"):
        audit(ignorant, request_, verdict={"alpha": 0.01})  # type: ignore[arg-type]
    assert ignorant.cost.forwards == before


def test_paths_are_loaded_and_hashed(files: Any, request_: DeletionRequest) -> None:
    found = audit(str(files.model), request_, audits=["probability"])
    model = json.loads(found.to_json())["models"]["unlearned"]
    assert model["path"] == str(files.model)
    assert len(model["sha256"]) == 64
    assert model["parameters"] > 0
