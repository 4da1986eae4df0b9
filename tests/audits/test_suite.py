from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from expunge.audits.base import Audit, Estimate, Finding, Scalar
from expunge.audits.language.probability import Probability
from expunge.audits.observations import Observations
from expunge.audits.suite import AUDITS, run_audits, select_audits
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


class Broken(Audit):
    id: ClassVar[str] = "broken"
    title: ClassVar[str] = "Does it fail?"
    paper: ClassVar[str] = "none"
    value: float | None = None

    def run(self, seen: Observations) -> Finding:
        if self.value is None:
            raise RuntimeError("the disk is on fire\nand more")
        return Finding(
            self.id, scalars=[Scalar("x", "x", "")], estimates={"unlearned": {"x": Estimate(self.value, n=1)}}
        )


class NotANumber(Broken):
    id: ClassVar[str] = "not_a_number"
    value = float("nan")


class OneMore(Audit):
    """One more likelihood metric: it reads what is read anyway."""

    id: ClassVar[str] = "one_more"
    title: ClassVar[str] = "?"
    paper: ClassVar[str] = "none"
    reads = (("forget", "answer"),)

    def run(self, seen: Observations) -> Finding:
        longest = max(len(s) for s in seen.scores("unlearned", "forget").values())
        return Finding(self.id, attempted={"longest": longest})


def test_defaults_leave_out_what_is_costly_and_add_what_settings_name(tmp_path: Path) -> None:
    names = [audit.id for audit in select_audits()]
    assert names == sorted(names)
    assert "gradient_norm" not in names
    assert "perplexity" not in names
    (tmp_path / "t.txt").write_text("text")
    more = select_audits(settings={"perplexity": {"text": tmp_path / "t.txt"}})
    assert [audit.id for audit in more if audit.id not in names] == ["perplexity"]


def test_every_wrong_name_and_setting_is_said_before_any_compute(scripted: Callable, request_: DeletionRequest) -> None:
    model = scripted()
    with pytest.raises(BadInput) as error:
        run_audits(
            {"unlearned": model},
            request_,
            ["probabilty", "membership", "membership", "perplexity"],
            settings={
                "membership": {"kk": 0.2, "k": 7.0},
                "perplexity": {"text": "no/such/file.txt"},
                "rouge": {"words": "latin"},
                "gcgg": {},
            },
        )
    text = str(error.value)
    assert "did you mean probability" in text
    assert "names 'membership' 2 times" in text
    assert "membership: kk: is not a setting -> did you mean k?" in text
    assert "k: input should be less than or equal to 1 (given: 7.0)" in text
    assert "is not a file" in text
    assert "settings of 'rouge': is not run -> ask for it too (--audit rouge)" in text
    assert "settings of 'gcgg': is not an audit -> did you mean gcg?" in text
    assert not model.score_calls
    assert error.value.exit_code == 2


def test_settings_beside_an_instance_are_refused() -> None:
    with pytest.raises(BadInput, match="given with its own"):
        select_audits([Probability()], {"probability": {}})


def test_one_failure_stops_nobody_and_is_said(models: dict[str, CausalLM], request_: DeletionRequest) -> None:
    steps: list[tuple[str, int, int]] = []
    result = run_audits(
        models, request_, [Broken(), NotANumber(), "probability"], progress=lambda *step: steps.append(step)
    )
    assert [(f.audit, f.status) for f in result.findings] == [
        ("broken", "crashed"),
        ("not_a_number", "crashed"),
        ("probability", "measured"),
    ]
    assert result.crashed[0].note == "RuntimeError: the disk is on fire"
    assert "NaN or infinite: estimates/unlearned/x" in result.crashed[1].note
    assert not result.crashed[1].estimates
    assert steps[-1][1] == steps[-1][2]
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_broken_model_never_looks_as_if_it_forgot(models: dict[str, CausalLM], request_: DeletionRequest) -> None:
    with torch.no_grad():
        models["unlearned"].model.get_output_embeddings().weight.fill_(float("nan"))
    result = run_audits(models, request_, settings={"relearning": {"steps": (0, 1)}})
    status = {finding.audit: finding.status for finding in result.findings}
    for audit in ("probability", "truth_ratio", "membership", "privleak", "forget_quality", "extraction_strength"):
        assert status[audit] == "crashed"
        assert "NaN" in result.finding(audit).note
    assert status["rouge"] == "crashed"
    assert not [f.audit for f in result.findings if f.status == "measured"]


def test_another_likelihood_metric_adds_no_forward(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    names = ["probability", "membership", "extraction_strength"]

    def run(audits: list[Any]) -> dict[str, int]:
        return run_audits({"unlearned": make_lm(0)}, request_, audits).counts["unlearned"].to_dict()

    before, after = run(names), run([*names, OneMore()])
    assert after["forwards"] == before["forwards"]
    assert after["sequences_run"] == before["sequences_run"]
    assert after["sequences_asked"] == before["sequences_asked"] + len(request_.forget)


def test_result_knows_its_cost_and_answers(models: dict[str, CausalLM], request_: DeletionRequest) -> None:
    models["original"] = models["unlearned"]
    result = run_audits(models, request_, ["rouge", "probability"])
    assert set(result.counts) == {"unlearned", "oracle", "oracle-2"}
    assert all(cost.forwards and cost.flops for cost in result.cost.values())
    answers = next(iter(result.samples["forget"].values()))
    assert set(answers) == set(models)
    assert result.titles["rouge"] == AUDITS.get("rouge").title
    with pytest.raises(KeyError):
        result.finding("membership")


def test_some_audits_run_for_their_scenario_without_being_asked() -> None:
    def chosen(scenario: str, kind: str = "image_classifier") -> set[str]:
        return {audit.id for audit in select_audits(None, None, kind, scenario)}

    assert chosen("corrupted") - chosen("examples") == {"corrected_accuracy"}
    assert chosen("corrupted", "causal_lm") == chosen("examples", "causal_lm")
