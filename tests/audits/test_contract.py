"""What every audit promises, tried on every audit that is in the house; a new file is covered by being there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.audits.base import Audit, Finding
from expunge.audits.observations import Observations
from expunge.audits.suite import AUDITS, not_finite, run_audits, run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.combination import Combination
from expunge.tasks.in_context import Context, InContextLM
from expunge.tasks.logit_ensemble import LogitEnsemble

# Settings without which an audit has nothing to do, or does too much for a test.
QUICK: dict[str, dict[str, Any]] = {
    "quantisation": {"bits": (4,)},
    "soft_prompt": {"steps": (0, 1), "vectors": 2},
    "relearning": {"steps": (0, 2), "learning_rates": (1e-3,)},
    "activation_steering": {"strengths": (0, 1.0), "layers": (0,)},
    "gcg": {"steps": (0, 1), "tokens": 3, "width": 4, "top": 8},
    "model_utility": {"resamples": 100},
    "privleak": {"resamples": 100},
    "option_permutation": {"most_orders": 6},
    "verifier": {"least_rows": 8, "least_accuracy": 0.34},
    "lira": {"shadows": 4, "max_steps": 2},
}


def settings_of(audit: type[Audit], folder: Path) -> dict[str, Any]:
    if audit.id == "perplexity":
        (folder / "text.txt").write_text("Mirela Ostrander was born in Velburg. " * 20, encoding="utf-8")
        return {"text": folder / "text.txt", "window": 32, "stride": 16}
    if audit.id == "lm_eval":
        pytest.skip("needs the harness, which takes seconds to start; its promises are kept in its own tests")
    return QUICK.get(audit.id, {})


def hooks(model: torch.nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


@dataclasses.dataclass
class Measured:
    """One run of an audit, and the models it ran on."""

    audit: Audit
    finding: Finding
    models: dict[str, CausalLM]
    before: dict[str, Any]
    after: dict[str, Any]


def state(models: Mapping[str, CausalLM]) -> dict[str, Any]:
    """Everything about models that an audit could leave changed."""
    return {
        "weights": {(n, k): v.clone() for n, m in models.items() for k, v in m.model.state_dict().items()},
        "training": {n: m.model.training for n, m in models.items()},
        "trained": {n: [p.requires_grad for p in m.model.parameters()] for n, m in models.items()},
        "gradients": sum(p.grad is not None for m in models.values() for p in m.model.parameters()),
        "hooks": {n: hooks(m.model) for n, m in models.items()},
        "random": torch.random.get_rng_state(),
    }


# Those of classifiers and regressors: test_contract_predictors.py.
LANGUAGE = [audit for audit in AUDITS.classes() if "causal_lm" in audit.tasks]


@pytest.fixture(scope="module", params=LANGUAGE, ids=[audit.id for audit in LANGUAGE])
def measured(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_lm: Callable[..., CausalLM],
    request_: DeletionRequest,
) -> Measured:
    audit = request.param(request.param.Config(**settings_of(request.param, tmp_path_factory.mktemp("audit"))))
    models = {name: make_lm(seed) for seed, name in enumerate(("unlearned", "original", "oracle", "oracle-2"))}
    before = state(models)
    finding = run_one(audit, Observations(models, request_, seed=3, max_new_tokens=8))
    return Measured(audit, finding, models, before, state(models))


def test_the_audits_of_the_room_are_found() -> None:
    assert {
        "probability",
        "rouge",
        "truth_ratio",
        "extraction_strength",
        "exact_memorization",
        "membership",
        "gradient_norm",
        "privleak",
        "forget_quality",
        "model_utility",
        "perplexity",
        "weight_distance",
        "relearning",
    } <= set(AUDITS.names())


def test_it_measures_without_a_trace(measured: Measured) -> None:
    assert measured.finding.status == "measured", measured.finding.note
    before, after = measured.before, measured.after
    assert all(torch.equal(value, after["weights"][key]) for key, value in before["weights"].items())
    assert torch.equal(before["random"], after["random"])
    for what in ("training", "trained", "gradients", "hooks"):
        assert before[what] == after[what], what


def test_same_seed_same_finding(measured: Measured, request_: DeletionRequest) -> None:
    copies = {name: model.copy() for name, model in measured.models.items()}
    again = run_one(measured.audit, Observations(copies, request_, seed=3, max_new_tokens=8))
    assert dataclasses.asdict(again) == dataclasses.asdict(measured.finding)


def test_findings_are_complete_and_plain(measured: Measured, request_: DeletionRequest) -> None:
    finding, models = measured.finding, measured.models
    json.dumps(dataclasses.asdict(finding), allow_nan=False)
    assert not list(not_finite(finding))
    names = [scalar.name for scalar in finding.scalars]
    assert len(names) == len(set(names))
    expected = set(models) - ({"original"} if measured.audit.id == "weight_distance" else set())
    assert set(finding.estimates) == expected
    for estimates in finding.estimates.values():
        assert set(estimates) == set(names)
        for estimate in estimates.values():
            assert estimate.value is not None or estimate.note, "a missing value must say why"
            if estimate.value is not None and estimate.low is not None and estimate.high is not None:
                assert estimate.low <= estimate.value <= estimate.high
    for evidence in finding.evidence:
        assert set(evidence.values) == set(models)
        alike = len({frozenset(values) for values in evidence.values.values()}) == 1
        assert alike or finding.note, "values of different examples must be explained"
        known = set(request_.sets()[evidence.about]["id"])
        assert all(set(values) <= known for values in evidence.values.values())
        assert all(set(values) <= set(request_.holdout["id"]) for values in evidence.control.values())


def test_a_missing_need_is_no_data(
    measured: Measured, make_lm: Callable[..., CausalLM], make_examples: Callable
) -> None:
    audit = measured.audit
    bare = DeletionRequest(make_examples(range(2), rich=False))
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, bare))
    if audit.needs:
        assert finding.status == "no data"
        assert finding.note
        assert not finding.estimates
    else:
        assert finding.status in ("measured", "no data"), finding.note


def test_order_of_examples_changes_nothing(measured: Measured, request_: DeletionRequest) -> None:
    def turned(examples: Dataset) -> Dataset:
        return examples.select(range(len(examples) - 1, -1, -1))

    other = DeletionRequest(*(turned(examples) for examples in (request_.forget, request_.retain, request_.holdout)))
    second = run_one(measured.audit, Observations(measured.models, other, seed=3, max_new_tokens=8))
    for model, values in measured.finding.per_example.items():
        for identity, statistics in values.items():
            assert second.per_example[model][identity] == pytest.approx(statistics, abs=1e-5)


@pytest.mark.parametrize("cls", AUDITS.classes(), ids=AUDITS.names())
def test_it_says_what_it_is(cls: type[Audit]) -> None:
    assert cls.title.endswith("?")
    assert cls.paper
    assert cls.tasks
    for name, field in cls.Config.model_fields.items():
        assert field.description, f"{name} has no description"
    assert set(cls.needs) <= {"retain", "holdout", "original", "oracle", "perturbed_answers", "paraphrased_answer"}


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "gemma2", "mixtral"])
def test_the_default_suite_serves_other_families(
    family: str, make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    models = {"unlearned": make_lm(0, family), "original": make_lm(1, family), "oracle": make_lm(2, family)}
    result = run_audits(models, request_, settings=QUICK, max_new_tokens=8)
    assert {f.audit: f.note for f in result.findings if f.status != "measured"} == {}


def test_chat_and_adapters_are_served(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    models = {name: make_lm(seed, chat=True) for seed, name in enumerate(("unlearned", "original", "oracle"))}
    models["unlearned"].wrap_lora(rank=2, alpha=4, dropout=0.1)
    result = run_audits(models, request_, settings=QUICK, max_new_tokens=8)
    assert {f.audit: f.note for f in result.findings if f.status != "measured"} == {}


@pytest.mark.parametrize("kind", ["logit_ensemble", "in_context_lm"])
def test_guarded_models_are_served_by_every_audit(
    kind: str, make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    models = {name: make_lm(seed) for seed, name in enumerate(("unlearned", "original", "oracle"))}
    main = models["unlearned"]
    if kind == "logit_ensemble":
        main.model.requires_grad_(True)
        models["unlearned"] = LogitEnsemble(main, [make_lm(7).model], Combination((-0.5,), filter=0.01, min_keep=20))
    else:
        models["unlearned"] = InContextLM(main, Context("", (("Who?", "Nobody."),)))
    before = state(models)
    # The harness of lm_eval takes seconds to start.
    serving = [audit for audit in AUDITS.classes() if "causal_lm" in audit.tasks and audit.id != "lm_eval"]
    settings = {audit.id: settings_of(audit, tmp_path) for audit in serving}
    result = run_audits(models, request_, [a.id for a in serving], settings=settings, max_new_tokens=8)
    assert {f.audit: f.note for f in result.findings if f.status == "crashed"} == {}
    after = state(models)
    assert all(torch.equal(value, after["weights"][key]) for key, value in before["weights"].items())
    assert before["hooks"] == after["hooks"]
    distance = next(f for f in result.findings if f.audit == "weight_distance")
    assert distance.estimates["unlearned"]["relative_distance"].value is not None
    assert "Behind a guard: 'unlearned'" in distance.note
