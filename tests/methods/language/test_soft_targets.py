"""Cross-entropy against soft targets: torch's own in float64, its gradient, and how rows are asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from expunge.methods.language import soft_targets
from expunge.methods.language.soft_targets import soft_cross_entropy

sizes = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(0, 10**6))


def two(rows: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = 3 * torch.randn(2, rows, vocabulary, generator=generator, dtype=torch.float64)
    return draw[0].requires_grad_(), draw[1]


@given(sizes)
def test_it_is_the_cross_entropy_of_torch(size: tuple[int, int, int]) -> None:
    logits, target = two(*size)
    ours = soft_cross_entropy(logits, target.__getitem__)
    plain = F.cross_entropy(logits, target.softmax(-1), reduction="none")
    torch.testing.assert_close(ours, plain)
    weights = torch.arange(1.0, len(logits) + 1, dtype=torch.float64)
    (mine,) = torch.autograd.grad((weights * ours).sum(), logits)
    (theirs,) = torch.autograd.grad((weights * plain).sum(), logits)
    torch.testing.assert_close(mine, theirs)


@given(sizes)
def test_no_prediction_does_better_than_the_target_itself(size: tuple[int, int, int]) -> None:
    logits, target = two(*size)
    entropy = torch.distributions.Categorical(logits=target).entropy()
    assert (soft_cross_entropy(logits, target.__getitem__) >= entropy - 1e-9).all()
    same = target.clone().requires_grad_()
    at_best = soft_cross_entropy(same, target.__getitem__)
    torch.testing.assert_close(at_best, entropy)
    (gradient,) = torch.autograd.grad(at_best.sum(), same)
    assert gradient.abs().max() < 1e-12


def test_under_autocast_nothing_is_rounded_further() -> None:
    logits, target = (z.detach().float() for z in two(6, 50, 1))
    plain = soft_cross_entropy(logits, target.__getitem__)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_cross_entropy(logits, target.__getitem__), plain)


def test_rows_are_asked_for_in_chunks_and_never_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = two(7, 4, 0)
    whole = soft_cross_entropy(logits, target.__getitem__)
    monkeypatch.setattr(soft_targets, "CHUNK", 8)
    asked: list[int] = []

    def give(rows: slice) -> torch.Tensor:
        asked.append(len(target[rows]))
        return target[rows]

    pieces = soft_cross_entropy(logits, give)
    assert asked == [2, 2, 2, 1]
    torch.testing.assert_close(pieces, whole)
    (mine,) = torch.autograd.grad(pieces.sum(), logits)
    torch.testing.assert_close(mine, logits.softmax(-1) - target.softmax(-1))


def test_the_target_gets_no_gradient_and_stays_as_it_is() -> None:
    logits, target = two(3, 5, 1)
    before = target.clone()
    target.requires_grad_()
    soft_cross_entropy(logits, target.__getitem__).sum().backward()
    assert target.grad is None
    assert torch.equal(target, before)


def test_low_precision_is_computed_in_float32_and_its_gradient_rounded_once() -> None:
    logits, target = two(5, 400, 3)
    low, low_target = logits.detach().bfloat16().requires_grad_(), target.bfloat16()
    exact = low.detach().double().requires_grad_()
    plain = F.cross_entropy(exact, low_target.double().softmax(-1), reduction="none")
    ours = soft_cross_entropy(low, low_target.__getitem__)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-5)
    (mine,) = torch.autograd.grad(ours.mean(), low)
    (theirs,) = torch.autograd.grad(plain.mean(), exact)
    torch.testing.assert_close(mine.double(), theirs, rtol=2**-8, atol=1e-9)
