"""The one call that forgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.language.npo import NPO, NPOConfig
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

QUICK: dict[str, Any] = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}


def test_a_folder_a_task_and_a_configured_method_come_to_the_same(
    task: CausalLM, request_: DeletionRequest, tmp_path: Path
) -> None:
    task.save(tmp_path / "model")
    one = unlearn(task, request_, "npo", settings={**QUICK, "beta": 0.5})
    two = unlearn(tmp_path / "model", request_, NPO(NPOConfig(beta=0.5)), settings=QUICK)
    other = unlearn(str(tmp_path / "model"), request_, settings=QUICK)
    first = one.model.model.state_dict()
    assert all(torch.equal(first[n], v) for n, v in two.model.model.state_dict().items())
    assert any(not torch.equal(first[n], v) for n, v in other.model.model.state_dict().items())
    assert one.config["beta"] == two.config["beta"] == 0.5
    assert one.train is not None
    assert (one.train["max_steps"], one.train["seed"]) == (2, 0)
    assert "npo" in one.model.source


@pytest.mark.parametrize("broken", ["model", "oracle"])
def test_weights_that_are_no_numbers_are_refused(task: CausalLM, request_: DeletionRequest, broken: str) -> None:
    other = task.copy()
    next(other.model.parameters()).data.view(-1)[0] = float("nan")
    model, oracle = (other, task) if broken == "model" else (task, other)
    with pytest.raises(BadInput, match="NaN or infinite values in 1 of"):
        unlearn(model, request_, settings=QUICK, oracle=oracle)


def test_settings_of_a_configured_method_belong_to_it(task: CausalLM, request_: DeletionRequest) -> None:
    with pytest.raises(BadInput, match="beta"):
        unlearn(task, request_, NPO(), settings={"beta": 1.0})


def test_unknown_names_are_met_with_near_ones(task: CausalLM, request_: DeletionRequest) -> None:
    with pytest.raises(BadInput, match="there is no 'nop' -> did you mean npo"):
        unlearn(task, request_, "nop")


def test_what_is_mixed_up_is_refused_by_name(task: CausalLM, request_: DeletionRequest, tmp_path: Path) -> None:
    given: Any = ["beta"]
    with pytest.raises(BadInput) as error:
        unlearn(task, tmp_path, settings=given)  # type: ignore[arg-type]
    assert [p.where for p in error.value.problems] == ["request", "settings"]
    with pytest.raises(BadInput, match="method: is a int"):
        unlearn(task, request_, 5)  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="is a file -> give the name of a folder"):
        unlearn(task, request_, folder=tmp_path / "file")


def test_progress_and_log_reach_the_caller(task: CausalLM, request_: DeletionRequest, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    done = unlearn(
        task,
        request_,
        "npo",
        settings=QUICK,
        folder=tmp_path,
        progress=lambda step, total, _: seen.append((step, total)),
    )
    assert seen == [(1, 2), (2, 2)]
    assert done.training is not None
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 2
    assert done.cost.forwards == done.training.cost.forwards + done.training.probe_cost.forwards


def test_an_oracle_gives_the_level_to_stop_at(task: CausalLM, request_: DeletionRequest) -> None:
    settings = {**QUICK, "max_steps": 30, "stop.every": 1, "stop.forget_target": "oracle"}
    oracle = task.fresh(7)
    done = unlearn(task, request_, "gradient_ascent", settings=settings, oracle=oracle)
    assert done.training is not None
    rows = request_.forget.to_list()
    expected = sum(s.nll for s in oracle.score([(r["prompt"], r["answer"]) for r in rows])) / len(rows)
    assert done.training.probe_target == pytest.approx(expected, rel=1e-5)
    assert done.training.probes[-1].forget_nll >= expected or "collapsed" in done.training.stop_reason  # type: ignore[operator]


@pytest.mark.parametrize(
    ("stop", "where"),
    [
        ({"stop.forget_target": "oracle"}, "stop.forget_target"),
        ({"stop.forget_target": "holdout"}, "stop.forget_target"),
        ({"stop.keep": "closest"}, "stop.keep"),
    ],
)
def test_rules_that_cannot_work_are_refused_before_any_compute(
    task: CausalLM, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch, stop: dict[str, Any], where: str
) -> None:
    monkeypatch.setattr(CausalLM, "copy", lambda _: pytest.fail("something was computed"))
    alone = DeletionRequest(request_.forget, request_.retain)
    with pytest.raises(BadInput) as caught:
        unlearn(task, alone, "npo", settings={"stop.every": 1, **stop})
    assert [p.where for p in caught.value.problems] == [where]
