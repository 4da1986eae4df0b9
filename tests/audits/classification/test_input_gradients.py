from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.audits.classification.input_gradients import InputGradients, mass_inside, ranked, unmasked
from expunge.audits.observations import Observations
from expunge.audits.suite import run_audits, run_one
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor


def test_coordinates_are_ranked_and_ties_are_broken_by_seed() -> None:
    scores = torch.tensor([[[1.0, 3.0], [2.0, 0.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert ranked(scores, 0)[0].tolist() == [1, 2, 0, 3]
    assert len({tuple(ranked(scores, seed)[1].tolist()) for seed in range(10)}) > 1


def test_only_the_first_of_an_order_are_kept() -> None:
    inputs = torch.arange(1.0, 9.0).view(2, 1, 2, 2)
    order = torch.tensor([[3, 0, 1, 2], [1, 2, 3, 0]])
    kept = unmasked(inputs, order, 0.5, torch.tensor([[[-1.0]]]))
    assert kept.flatten(1).tolist() == [[1.0, -1.0, -1.0, 4.0], [-1.0, 6.0, 7.0, -1.0]]


def test_what_lies_in_a_box() -> None:
    magnitude = torch.tensor([[[1.0, 0.0], [0.0, 3.0]], [[1.0, 1.0], [1.0, 1.0]]])
    share, hit = mass_inside(magnitude, [[1, 0, 2, 2], [1, 0, 2, 2]])
    np.testing.assert_allclose(share, [0.75, 0.5])
    assert hit.tolist() == [True, False]


def spots(count: int, offset: int) -> Dataset:
    """Images whose class is how bright their upper left quarter is; the rest is noise."""
    rows = []
    for i in range(offset, offset + count):
        luck, kind = np.random.default_rng(i), i % 2
        pixels = luck.normal(0.5, 0.1, (6, 6)).astype(np.float32)
        pixels[:3, :3] += 0.2 * (2 * kind - 1)
        rows.append({"id": f"i{i}", "image": pixels.tolist(), "label": "ab"[kind], "signal_box": [0, 0, 3, 3]})
    return Dataset.from_list(rows)


def task_of(weights: torch.Tensor) -> Predictor:
    """A linear model that reads pixels with these weights."""
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 36, "outputs": 2, "hidden": []})
    model = Predictor.of_images(factory.make(0), ["a", "b"], factory=factory, channels=1)
    head: Any = model.head_module()
    with torch.no_grad():
        head.weight.copy_(torch.stack([-weights, weights]))
        head.bias.copy_(torch.stack([weights.sum() / 2, -weights.sum() / 2]))
    return model


def test_gradients_that_point_at_the_signal_are_told_from_those_that_point_away() -> None:
    torch.manual_seed(0)
    inside = torch.zeros(6, 6)
    inside[:3, :3] = 1
    towards = (inside + 0.01 * torch.rand(6, 6)).flatten()
    away = (1 - inside + 0.01 * torch.rand(6, 6)).flatten()
    request = DeletionRequest(spots(4, 1000), spots(300, 0))
    config = InputGradients.Config(fractions=(0.25,), epochs=15, learning_rate=0.05, batch_size=32)
    found = {}
    for name, weights in (("towards", towards), ("away", away)):
        finding = run_one(InputGradients(config), Observations({"unlearned": task_of(weights)}, request))
        assert finding.status == "measured", finding.note
        found[name] = finding
        rows = {row[0]: row for row in finding.tables[0].rows}
        assert abs(rows["random"][-1]) < 0.25
    good, bad = (found[name].estimates["unlearned"] for name in ("towards", "away"))
    assert good["diffroar_0.25"].low > 0.2  # type: ignore[operator]
    assert bad["diffroar_0.25"].high < -0.2  # type: ignore[operator]
    assert "point at what" in found["towards"].note
    assert "point away from" in found["away"].note
    assert good["signal_mass"].value > 0.9  # type: ignore[operator]
    assert bad["signal_mass"].value < 0.1  # type: ignore[operator]
    assert (good["signal_top"].value, bad["signal_top"].value) == (1, 0)
    assert found["away"].attempted["copies trained"] == 4


def test_without_what_it_needs_nothing_is_measured() -> None:
    alone = DeletionRequest(spots(4, 1000))
    finding = run_one(InputGradients(), Observations({"unlearned": task_of(torch.ones(36))}, alone))
    assert finding.status == "no data"
    assert "no retain set" in finding.note


def test_models_that_cannot_be_made_anew_are_refused_before_any_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    model = task_of(torch.ones(36))
    model.factory = None
    monkeypatch.setattr(Predictor, "encode", lambda *_, **__: pytest.fail("something was computed"))
    settings = {"input_gradients": {"models": ["unlearned", "oracle"]}}
    request = DeletionRequest(spots(4, 1000), spots(30, 0))
    with pytest.raises(BadInput, match="models: 'oracle' is not there") as caught:
        run_audits({"unlearned": model}, request, audits=["input_gradients"], settings=settings)
    assert len(caught.value.problems) == 2
    with pytest.raises(BadInput, match="shares between 0 and 1"):
        run_audits({"unlearned": model}, request, settings={"input_gradients": {"fractions": [0.1, 1.5]}})
