"""What every audit promises, tried on classifiers and regressors with every audit that serves them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.audits.observations import Observations
from expunge.audits.suite import AUDITS, not_finite, run_audits, run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

KIND_OF = {
    "image_classifier": "resnet",
    "text_classifier": "bert",
    "tabular_classifier": "table",
    "regressor": "table-regressor",
}
MATRIX = [(a.id, KIND_OF[kind]) for a in AUDITS.classes() for kind in a.tasks if kind in KIND_OF]
# Settings of a short run.
QUICK: dict[str, dict[str, Any]] = {
    "relearning": {"steps": (0, 2), "learning_rates": (1e-3,)},
    "lira": {"shadows": 4, "epochs": 1, "max_steps": 1},
    "anamnesis_index": {"max_steps": 2, "repeats": 2},
    "quantisation": {"bits": (8, 4)},
    "input_gradients": {"fractions": (0.5,), "epochs": 1},
}


def settings_of(audit: str) -> dict[str, Any]:
    """The short settings of an audit; those of another name in ``QUICK`` would be refused."""
    return QUICK.get(audit, {})


def asked(rows: Callable[[str, range], Dataset], name: str, audit: str = "") -> DeletionRequest:
    forget, retain, holdout = rows(name, range(8)), rows(name, range(8, 18)), rows(name, range(30, 38))
    if audit != "corrected_accuracy":
        return DeletionRequest(forget, retain, holdout)
    swapped = forget.add_column("clean_label", list(forget["label"])[1:] + list(forget["label"])[:1])
    return DeletionRequest(swapped, retain, holdout, scenario="corrupted")


def models_of(make: Callable[..., Predictor], name: str) -> dict[str, Predictor]:
    return {model: make(name, seed) for seed, model in enumerate(("unlearned", "original", "oracle", "oracle-2"))}


def state(models: dict[str, Predictor]) -> list[torch.Tensor]:
    return [value.clone() for model in models.values() for value in model.model.state_dict().values()]


@pytest.mark.parametrize(("audit", "name"), MATRIX)
def test_it_measures_without_a_trace_and_the_same_again(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], audit: str, name: str
) -> None:
    request, models = asked(tiny_rows, name, audit), models_of(tiny_predictor, name)
    for model in models.values():
        model.model.train()
    made = AUDITS.get(audit)
    before, luck = state(models), torch.random.get_rng_state()
    finding = run_one(made(made.Config(**settings_of(audit))), Observations(models, request, seed=3))
    assert finding.status == "measured", finding.note
    assert all(torch.equal(a, b) for a, b in zip(before, state(models), strict=True)), "a model was changed"
    assert all(model.model.training for model in models.values())
    assert torch.equal(luck, torch.random.get_rng_state())

    json.dumps(dataclasses.asdict(finding), allow_nan=False)
    assert not list(not_finite(finding))
    names = {scalar.name for scalar in finding.scalars}
    assert all(set(estimates) == names for estimates in finding.estimates.values())
    for evidence in finding.evidence:
        assert set(evidence.values) == set(models)
        assert all(set(values) <= set(request.sets()[evidence.about]["id"]) for values in evidence.values.values())

    again = run_one(made(made.Config(**settings_of(audit))), Observations(models, request, seed=3))
    assert dataclasses.asdict(again) == dataclasses.asdict(finding)


@pytest.mark.parametrize("name", [*KIND_OF.values(), "vit", "module", "gpt2-score", "image-regressor"])
def test_the_default_suite_serves_every_kind_with_one_pass_per_set(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], name: str
) -> None:
    request, models = asked(tiny_rows, name), models_of(tiny_predictor, name)
    result = run_audits(
        models, request, settings={name: chosen for name, chosen in QUICK.items() if AUDITS.get(name).default}
    )
    assert {f.audit: f.note for f in result.findings if f.status == "crashed"} == {}
    assert {"prediction_loss", "weight_distance", "relearning"} <= {f.audit for f in result.findings}
    for counts in result.counts.values():
        assert counts.sequences_run == len(request.forget) + 10 + 8
    assert any(f.evidence for f in result.findings)


def test_models_of_other_classes_are_not_compared(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    one, other = tiny_predictor("table"), tiny_predictor("table-regressor")
    with pytest.raises(ValueError, match="model 'original': predicts other classes"):
        Observations({"unlearned": one, "original": other}, asked(tiny_rows, "table"))
