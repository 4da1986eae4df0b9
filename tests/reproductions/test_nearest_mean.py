from __future__ import annotations

import torch
import torch.nn.functional as F

from expunge.benchmarks.predictor_data import cut
from expunge.data import known_sets
from expunge.reproductions.nearest_mean import NearestMeanReproduction, _deletion, _of, _start, nearest


def test_means_are_not_normalised_again() -> None:
    """A tight class has a longer mean: distance favours it where the direction would not."""
    means = torch.tensor([[0.9, 0.0], [0.3, 0.3], [9.0, 9.0]], dtype=torch.float64)
    counts = torch.tensor([3, 3, 0])
    asked = F.normalize(torch.tensor([[0.8, 0.6], [0.0, 1.0]], dtype=torch.float64), dim=-1)
    # Distances of (0.8, 0.6): sqrt(0.01 + 0.36) = 0.61 and sqrt(0.25 + 0.09) = 0.58; of (0, 1): 1.35 and 0.76.
    assert nearest(means, counts, asked).tolist() == [1, 1]
    assert nearest(means, torch.tensor([3, 0, 0]), asked).tolist() == [0, 0]


def test_what_is_deleted_is_gone_from_the_head_alone() -> None:
    train = cut(known_sets.digits("train", noise=0.0), 300)
    test = known_sets.digits("test", noise=0.0)
    names = sorted(set(train["label"]))
    found = _deletion(_start("digits", names), train, test, names, 0)
    for kind in ("examples", "known_class", "new_class"):
        assert found[f"{kind}_difference"] <= 1e-12
        assert found[f"{kind}_same_answers"] == 1
    assert found["known_class_accuracy_before"] > 0.5
    assert found["known_class_accuracy_after"] == 0
    assert found["known_class_accuracy_given_back"] > 0.3


def test_classes_are_taken_by_name() -> None:
    train = cut(known_sets.digits("train"), 50)
    assert sorted(_of(train, ["3", "7"])["label"]) == ["3"] * 5 + ["7"] * 5


def measured(nmc: float, sequential: float, difference: float) -> dict[str, float]:
    runs = {"digits_nmc": nmc, "digits_sequential": sequential, "digits_nmc_last": nmc, "digits_raw": 0.9,
            "digits_sequential_last": sequential, "digits_untrained": 0.5}  # fmt: skip
    for kind in ("examples", "known_class", "new_class"):
        runs |= {f"digits_{kind}_difference": difference, f"digits_{kind}_same_answers": 1.0}
    return runs | {"digits_known_class_accuracy_given_back": 0.8}


def test_every_seed_has_to_hold() -> None:
    judge = NearestMeanReproduction().judge
    assert all(c.holds for c in judge([measured(0.8, 0.5, 0.0), measured(0.7, 0.5, 1e-15)]))
    ahead, exact = judge([measured(0.8, 0.5, 0.0), measured(0.6, 0.5, 1e-9)])
    assert not ahead.holds
    assert "likely reason" in ahead.detail
    assert not exact.holds
    assert len(judge([measured(0.8, 0.5, 0.0)])) == 2  # only the sets that were run
