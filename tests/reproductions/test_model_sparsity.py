from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from expunge.reproductions.classifier_world import digits_world
from expunge.reproductions.model_sparsity import (
    GAMMAS,
    METHODS,
    PLACES,
    RULES,
    ModelSparsity,
    compared,
    pruned,
    sparsely_retrained,
)


def numbers(dense: float, sparse: float) -> dict[str, float]:
    """Made-up numbers in which every dense gap is one number and every sparse one another."""
    found: dict[str, float] = {}
    for place in PLACES:
        for method in METHODS if place != "pictures" else ("ft",):
            found |= {f"{place}_dense_{method}_gap": dense, f"{place}_sparse_{method}_gap": sparse}
        found[f"{place}_sparse_ft_gap_to_dense"] = sparse
        found |= {f"{place}_{rule}_ft_gap": sparse for rule in RULES}
        found |= {f"{place}_dense_l1_{g:g}_gap": sparse - k for k, g in enumerate(GAMMAS)}
        found |= {f"{place}_dense_retrained_ta": 75.0, f"{place}_sparse_retrained_ta": 75.0 - dense}
        found |= {f"{place}_dense_retrained_ra": 100.0, f"{place}_sparse_retrained_ra": 90.0}
        found[f"{place}_sparse_retrained_other_ra"] = 80.0
    return found


def test_the_claim_holds_where_sparse_gaps_are_smaller_and_not_where_they_are_larger() -> None:
    assert all(check.holds for check in ModelSparsity().judge([numbers(2.0, 1.0)] * 3))
    assert not any(check.holds for check in ModelSparsity().judge([numbers(4.0, 9.0)] * 3))


def test_without_pictures_nothing_is_said_of_them() -> None:
    found = {key: value for key, value in numbers(2.0, 1.0).items() if not key.startswith("pictures")}
    checks = ModelSparsity().judge([found])
    assert not any("pictures" in check.claim for check in checks)


def test_sparse_models_are_sparse_and_keep_their_zeros() -> None:
    world = digits_world(0, "class", hidden=(32, 32), quick=True)
    short = {"epochs": 1}
    models = [pruned(world, "finetune", {"epochs": 1}, **short), pruned(world, "retrain", {"epochs": 1}, **short)]
    zeros = [{name: p == 0 for name, p in m.named_parameters() if p.dim() == 2 and "5." not in name} for m in models]
    assert all(torch.equal(zeros[0][name], zeros[1][name]) for name in zeros[0])
    assert sum(int(z.sum()) for z in zeros[0].values()) >= 0.94 * sum(z.numel() for z in zeros[0].values())


def test_the_sparse_reference_starts_where_the_mask_was_found() -> None:
    world = digits_world(0, "class", hidden=(32, 32), quick=True)
    still = replace(world, recipe={**world.recipe, "learning_rate": 1e-12, "epochs": 1})
    begun, other = (dict(sparsely_retrained(still, {}, k).named_parameters()) for k in (0, 100))
    first = dict(world.start.fresh(world.seed).named_parameters())
    for name, weight in begun.items():
        kept = weight != 0
        torch.testing.assert_close(weight[kept], first[name][kept])
    assert any(not torch.allclose(other[n][w != 0], first[n][w != 0]) for n, w in begun.items())


def test_each_is_judged_against_its_own_kind() -> None:
    world: Any = digits_world(0, "class", hidden=(32, 32), quick=True)
    found = compared(world, "class", {"ft": METHODS["ft"]}, {"epochs": 2})
    assert found["class_dense_retrained_gap"] == found["class_sparse_retrained_gap"] == 0
    assert found["class_dense_retrained_again_gap"] > 0
    assert found["class_sparse_ft_gap"] != found["class_sparse_ft_gap_to_dense"]
