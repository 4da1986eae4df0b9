from __future__ import annotations

import torch

from expunge.reproductions.classifier_world import digits_world
from expunge.reproductions.salun_classification import PLACES, RATES, SHARES, SalUnClassification, arms, outside


def numbers(salun: float, other: float, moved: float = 0.0) -> dict[str, float]:
    found = {}
    for place in PLACES:
        found[f"{place}_weights_moved_outside"] = moved
        for rate in RATES:
            found[f"{place}_random_label_{rate:g}_gap"] = other + rate
            for share in SHARES:
                found[f"{place}_salun_{share:g}_{rate:g}_gap"] = salun + rate
                found[f"{place}_random_mask_{share:g}_{rate:g}_gap"] = other + rate
    return found


def test_the_claim_holds_where_salient_weights_end_nearer_and_not_where_random_ones_do() -> None:
    assert all(check.holds for check in SalUnClassification().judge([numbers(1.0, 2.0)] * 3))
    assert not any(check.holds for check in SalUnClassification().judge([numbers(2.0, 1.0, 3.0)] * 3))


def test_each_arm_is_read_at_its_own_best_rate() -> None:
    found = numbers(1.0, 2.0)
    found["class_random_mask_0.1_0.03_gap"] = 0.5
    check = SalUnClassification().judge([found])[0]
    assert not check.holds
    assert "at learning rates 0.003 and 0.03" in check.detail


def test_what_moved_outside_is_counted() -> None:
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    b.load_state_dict(a.state_dict())
    with torch.no_grad():
        b.weight[0] += 1
        b.bias += 1
    mask = {"weight": torch.tensor([[True] * 3, [False] * 3])}
    assert outside(a, b, {**mask, "bias": None}) == 0
    assert outside(a, b, mask) == 2
    assert outside(a, b, {"weight": ~mask["weight"], "bias": None}) == 3


def test_the_arms_are_measured_and_nothing_outside_moves() -> None:
    world = digits_world(0, "class", hidden=(32,), quick=True)
    found = arms(world, "class", (0.1,), (1e-2,), {"epochs": 2})
    assert found["class_weights_moved_outside"] == 0
    assert {f"class_{arm}_0.01_gap" for arm in ("random_label", "salun_0.1", "random_mask_0.1")} <= set(found)
    assert found["class_salun_0.1_0.01_gap"] != found["class_random_mask_0.1_0.01_gap"]
