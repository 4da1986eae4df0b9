from __future__ import annotations

from pathlib import Path

import pytest

from expunge.data import known_sets
from expunge.data.block_mnist import block_images
from expunge.reproductions.base import Workbench
from expunge.reproductions.input_gradients import (
    PLACES,
    InputGradientsReproduction,
    analysed,
    blocks,
    mass_on_signal,
)
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor


def numbers(holds: bool) -> dict[str, float]:
    """Made-up numbers in which all is as claimed, or nothing is."""
    found = {"analysed_standard_cosine": 0.3, "analysed_robust_cosine": 1.0}
    found |= {"analysed_standard_quality": -0.5 if holds else 1.0, "analysed_robust_quality": 1.0 if holds else 0.0}
    for name in PLACES:
        found |= {f"{name}_standard_mass": 0.5 if holds else 0.9, f"{name}_robust_mass": 0.8, f"{name}_top_mass": 0.85}
        for kept in (10, 25):
            found |= {f"{name}_random_diffroar_{kept}": 0.0, f"{name}_robust_diffroar_{kept}": 0.4}
            found[f"{name}_standard_diffroar_{kept}"] = 0.0 if holds else 0.5
    return found


def test_the_claim_holds_where_it_does_and_not_where_it_does_not() -> None:
    assert all(check.holds for check in InputGradientsReproduction().judge([numbers(True)] * 3))
    assert not any(check.holds for check in InputGradientsReproduction().judge([numbers(False)] * 3))


def test_the_analysed_network_learns_and_its_gradients_are_looked_at() -> None:
    found = analysed(0, 0.0, width=400, epochs=60)
    assert found["accuracy"] == 1
    assert -1 <= found["quality"] <= 1
    assert 0 < found["cosine"] <= 1
    assert found == analysed(0, 0.0, width=400, epochs=60)
    robust = analysed(0, 0.45, width=200, epochs=20)
    assert robust != analysed(0, 0.0, width=200, epochs=20)


def test_half_of_an_even_gradient_lies_on_the_signal() -> None:
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 128, "outputs": 10, "hidden": []})
    model = Predictor.of_images(factory.make(0), list("0123456789"), factory=factory, channels=1)
    for p in model.model.parameters():
        p.data.fill_(1.0)
    images = block_images(known_sets.digits("test", 0.0).select(range(20)))
    assert mass_on_signal(model, images) == pytest.approx(0.5)


def test_everything_is_measured(tmp_path: Path) -> None:
    found = blocks("digits", 0, Workbench(tmp_path, tmp_path, quick=True))
    for training in ("standard", "robust"):
        assert {f"digits_{training}_{what}" for what in ("mass", "accuracy", "diffroar_10", "diffroar_25")} <= set(
            found
        )
    assert {"digits_top_mass", "digits_random_diffroar_10"} <= set(found)
    assert 0.2 < found["digits_standard_mass"] < 0.9
