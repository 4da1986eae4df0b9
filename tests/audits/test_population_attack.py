from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.audits.base import Estimate
from expunge.audits.classification.entropy_mia import EntropyMia
from expunge.audits.classification.threshold_mia import ThresholdMia
from expunge.audits.observations import Observations
from expunge.audits.population_attack import PopulationAttack, attack_sides, in_percent
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictions import Predictions


def predicted(confidence: np.ndarray, start: int = 0) -> Predictions:
    """Examples of class 0 of two, with these confidences."""
    ids = [f"{start + k:04}" for k in range(len(confidence))]
    logits = np.stack([np.log(confidence), np.log1p(-confidence)], axis=1)
    return Predictions(ids, logits, np.zeros(len(ids), dtype=np.int64), classes=("a", "b"))


def test_shares_become_percent_and_their_complement_turns_the_interval() -> None:
    turned = in_percent(Estimate(0.2, 0.1, 0.4, 5), complement=True)
    assert (turned.value, turned.low, turned.high, turned.n) == (80.0, 60.0, 90.0, 5)
    assert in_percent(Estimate(0.2, 0.1, 0.4, 5)).high == 40.0
    assert in_percent(Estimate(None, note="none"), complement=True).value is None


def test_parity_takes_the_first_and_stops_where_there_are_too_few() -> None:
    retain, test = predicted(np.linspace(0.1, 0.9, 30)), predicted(np.linspace(0.1, 0.9, 20), 1000)
    members, others = attack_sides(retain, test, parity=True)
    assert members.ids == retain.ids[:20]
    assert others.ids == test.ids
    with pytest.raises(ValueError, match="first 30 retain examples, and there are 20"):
        attack_sides(test, retain, parity=True)


def test_otherwise_sides_are_drawn_balanced_and_whatever_the_order() -> None:
    retain, test = predicted(np.linspace(0.1, 0.9, 30)), predicted(np.linspace(0.1, 0.9, 20), 1000)
    members, others = attack_sides(retain, test, seed=1)
    assert len(members) == len(others) == 20
    assert members.ids != retain.ids[:20]
    turned, _ = attack_sides(retain.take(range(29, -1, -1)), test, seed=1)
    assert sorted(turned.ids) == sorted(members.ids)
    assert set(attack_sides(retain, test, seed=2)[0].ids) != set(members.ids)
    assert [len(side) for side in attack_sides(retain, test, most=7)] == [7, 7]


@pytest.mark.parametrize("attack", [ThresholdMia(), EntropyMia()], ids=lambda a: a.id)
def test_own_accuracy_is_half_where_there_is_nothing_to_tell(attack: PopulationAttack) -> None:
    luck = np.random.default_rng(2)
    same, other = predicted(luck.uniform(0.6, 0.9, 300)), predicted(luck.uniform(0.6, 0.9, 300), 1000)
    assert 0.4 < attack.own_accuracy(same, other, 0).mean() < 0.6
    apart = predicted(luck.uniform(0.95, 0.99, 300))
    right = attack.own_accuracy(apart, other, 0)
    assert right.mean() > 0.98
    assert len(right) == 600


@pytest.mark.parametrize(("attack", "direction"), [(ThresholdMia(), "low"), (EntropyMia(), "high")])
def test_the_direction_is_that_of_the_paper(
    sure_and_unsure: tuple[dict[str, Any], DeletionRequest],
    make_labelled: Callable,
    attack: PopulationAttack,
    direction: str,
) -> None:
    models, request = sure_and_unsure
    found = run_one(attack, Observations(models, request))
    main = found.scalars[0]
    assert main.knowing_is == direction
    knows, forgot = (found.estimates[m][main.name].value for m in ("original", "unlearned"))
    assert (knows, forgot) == pytest.approx((100, 0) if direction == "high" else (0, 100), abs=12)
    assert found.estimates["original"]["attack_accuracy"].value > 90
    short = DeletionRequest(request.forget, request.retain, make_labelled("abc", 200))
    assert run_one(attack, Observations(models, short)).status == "no data"
