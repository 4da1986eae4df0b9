from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.selections.base import SelectionConfig, both, selected_share, top_share
from expunge.selections.tensors import Tensors, TensorsConfig


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    share=st.floats(0.01, 1.0),
    seed=st.integers(0, 1000),
    coarse=st.booleans(),
)
def test_the_highest_scores_are_chosen_and_exactly_as_many_as_asked_for(
    sizes: list[int], share: float, seed: int, coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, 3, n) if coarse else rng.normal(size=n) for n in sizes]
    scores = {f"p{k}": torch.tensor(values, dtype=torch.float32) for k, values in enumerate(drawn)}
    mask = top_share(scores, share)
    flat, chosen = torch.cat(list(scores.values())), torch.cat([mask[name] for name in scores])
    assert int(chosen.sum()) == round(share * flat.numel())
    if chosen.any() and not chosen.all():
        assert flat[chosen].min() >= flat[~chosen].max()
    assert selected_share(mask, {n: s.numel() for n, s in scores.items()}) == int(chosen.sum()) / flat.numel()


def test_equal_scores_are_chosen_in_order() -> None:
    mask = top_share({"a": torch.ones(3), "b": torch.ones(3)}, 0.5)
    assert mask["a"].tolist() == [True] * 3
    assert mask["b"].tolist() == [False] * 3


def test_a_score_that_is_not_a_number_comes_last() -> None:
    mask = top_share({"a": torch.tensor([float("nan"), 1.0, -5.0, 2.0])}, 0.75)
    assert mask["a"].tolist() == [False, True, True, True]


def test_within_each_tensor_or_over_all() -> None:
    scores = {"small": torch.tensor([1.0, 2.0]), "large": torch.tensor([10.0, 20.0])}
    assert not top_share(scores, 0.5)["small"].any()
    assert {n: m.tolist() for n, m in top_share(scores, 0.5, "tensor").items()} == {
        "small": [False, True], "large": [False, True]
    }  # fmt: skip


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        top_share({"a": torch.ones(2)}, share)


def test_names_that_match_nothing_are_refused_with_names_that_there_are(make_task: Any, request_: Any) -> None:
    with pytest.raises(BadInput, match="no parameter's name matches 'nothing'"):
        Tensors(TensorsConfig(parameters="nothing")).check(make_task(), request_)


def test_settings_are_closed() -> None:
    with pytest.raises(ValueError, match="extra"):
        SelectionConfig(share=0.5)  # type: ignore[call-arg]


def test_a_weight_moves_where_both_masks_let_it() -> None:
    a, b = torch.tensor([True, True, False]), torch.tensor([True, False, False])
    found = both({"x": a, "y": None, "only": a}, {"x": b, "y": a})
    assert found is not None
    assert found.keys() == {"x", "y"}
    assert torch.equal(found["x"], torch.tensor([True, False, False]))  # type: ignore[arg-type]
    assert torch.equal(found["y"], a)  # type: ignore[arg-type]
    assert both(None, {"x": a}) == {"x": a}
    assert both({"x": None}, None) == {"x": None}
    assert both(None, None) is None
    with pytest.raises(BadInput, match="every weight"):
        both({"x": ~a}, {"x": b})


def test_a_number_that_is_not_whole_is_rounded_or_cut() -> None:
    scores = {"a": torch.tensor([3.0, 1.0, 2.0])}
    assert top_share(scores, 0.6)["a"].tolist() == [True, False, True]
    assert top_share(scores, 0.6, rounding="down")["a"].tolist() == [True, False, False]
    assert top_share({**scores, "b": scores["a"]}, 0.6, "tensor", rounding="down")["b"].tolist() == [True, False, False]


@pytest.mark.parametrize(("size", "share"), [(27, 0.5), (25, 0.5), (10, 1 - 0.95), (50, 1 - 0.95), (7, 1.0)])
def test_the_number_of_those_left_out_can_be_rounded_in_its_place(size: int, share: float) -> None:
    mask = top_share({"a": torch.arange(size)}, share, rounding="left_out")["a"]
    assert size - int(mask.sum()) == round((1 - share) * size)
    assert mask.tolist() == sorted(mask.tolist())


def test_scores_are_told_apart_in_their_own_precision() -> None:
    scores = torch.tensor([1.0, 1.0 + 1e-12, 1.0 + 2e-12], dtype=torch.float64)
    assert top_share({"a": scores}, 1 / 3)["a"].tolist() == [False, False, True]
