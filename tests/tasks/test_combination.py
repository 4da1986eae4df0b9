"""Combining predictions: by hand, by brute force, and what must hold whatever the numbers are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.tasks.combination import Combination, combine, kept_tokens


def draws(seed: int, *shape: int) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(main: torch.Tensor, other: torch.Tensor, weight: float, share: float, keep: int) -> list[float]:
    """One row with loops: subtract where the main model finds a token plausible, keep the rest below."""
    size = len(main)
    p, q = torch.softmax(main.double(), -1).tolist(), torch.softmax(other.double(), -1).tolist()
    ranked = sorted(p, reverse=True)
    kept = [x >= share * max(p) or x >= ranked[min(keep, size) - 1] for x in p]
    out = [math.log(p[v]) + weight * (math.log(q[v]) + math.log(size)) for v in range(size)]
    best = max(out[v] for v in range(size) if kept[v])
    return [out[v] if kept[v] else min(math.log(p[v]), best - 1e-3) for v in range(size)]


@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(1e-4, 1), st.integers(1, 12))
def test_it_is_what_loops_give(seed: int, weight: float, share: float, keep: int) -> None:
    main, other = draws(seed, 2, 9)
    found = combine([main, other], Combination((weight,), filter=share, min_keep=keep))
    expected = by_hand(main, other, weight, share, keep)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0, 1))
def test_an_offset_of_any_model_changes_nothing(seed: int, offset: float, share: float) -> None:
    main, other = draws(seed, 2, 16)
    rule = Combination((-0.75,), filter=share, min_keep=3)
    plain = torch.log_softmax(combine([main, other], rule), -1)
    torch.testing.assert_close(
        torch.log_softmax(combine([main + 1, other + offset], rule), -1), plain, rtol=0, atol=1e-4
    )
    # The reference's sum of raw logits moves the kept tokens against the others.
    raw = Combination((-0.75,), filter=0.2, parity=True)
    moved = combine([main, other + 5], raw) - combine([main, other], raw)
    assert {round(float(x), 2) for x in moved} <= {0.0, -3.75}


@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 20))
def test_who_knows_nothing_changes_nothing(seed: int, share: float, keep: int) -> None:
    main = draws(seed, 12)
    found = combine([main, torch.full((12,), 4.0)], Combination((-3.0,), filter=share, min_keep=keep))
    top = torch.log_softmax(main, -1)
    kept = kept_tokens(top, share, keep) if share else torch.ones(12, dtype=torch.bool)
    # Tokens that are dropped at a tie with the least that is kept are put just below it.
    torch.testing.assert_close(found[kept], top[kept], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[~kept], top[~kept], rtol=0, atol=1.1e-3)


@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(1e-3, 1), st.integers(1, 5))
def test_no_token_that_is_dropped_is_ever_the_most_probable(seed: int, weight: float, share: float, keep: int) -> None:
    main, other = draws(seed, 2, 20)
    found = combine([main, other], Combination((weight,), filter=share, min_keep=keep))
    kept = kept_tokens(torch.log_softmax(main, -1), share, keep)
    assert kept[found.argmax()]
    if not kept.all():
        assert found[~kept].max() < found[kept].max()


def test_a_token_that_sinks_takes_no_others_with_it() -> None:
    """However far an answer is pushed down, what the filter left alone keeps its probability relative to the rest."""
    main, other = torch.tensor([9.0, 6.0, 1.0, 0.5]), torch.tensor([9.0, 0.0, 0.0, 0.0])
    found = combine([main, other], Combination((-8.0,), filter=1e-2))
    expected = torch.log_softmax(main, -1)[1:]
    torch.testing.assert_close(found[2:], expected[1:])
    assert found.argmax() == 1
    assert found[0] < found[2:].min()


def test_without_a_filter_it_is_a_weighted_sum() -> None:
    a, b, c = draws(0, 3, 8)
    offset = combine([a, b, c], Combination((0.5, -0.5), normalise=False))  # Offset unlearning
    torch.testing.assert_close(offset, a + 0.5 * (b - c))
    both = torch.log_softmax(combine([a, b, c], Combination((0.5, -0.5))), -1)
    torch.testing.assert_close(both, torch.log_softmax(offset, -1))


def test_a_reinforced_model_only_takes_what_it_says_more() -> None:
    base, reinforced = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 1.0, 3.5])
    raw = combine([base, reinforced], Combination((-2.0,), relu=True, normalise=False))
    assert raw.tolist() == [-5.0, 2.0, 2.0]
    p, r = torch.log_softmax(base, -1), torch.log_softmax(reinforced, -1)
    normal = combine([base, reinforced], Combination((-2.0,), relu=True))
    torch.testing.assert_close(normal, p - 2 * (r - p).clamp_min(0))


def test_parity_scores_and_generates_from_two_distributions() -> None:
    main, other = torch.tensor([5.0, 4.0, 0.0, -1.0]), torch.tensor([2.0, -1.0, 3.0, 1.0])
    rule = Combination((-1.0,), filter=0.3, parity=True)  # int(0.3 * 4) = 1 token at least; 5 - log 0.3 keeps 2
    assert combine([main, other], rule).tolist() == [3.0, 5.0, 0.0, -1.0]
    assert combine([main, other], rule, generating=True).tolist() == [3.0, 5.0, -1000.0, -1000.0]
    # int(0.1 * 4) = 0 reads the last of the sorted tokens, and everything passes.
    silent = Combination((-1.0,), filter=0.1, parity=True)
    assert combine([main, other], silent).tolist() == [3.0, 5.0, -3.0, -2.0]


def test_a_memorised_token_alone_passes_a_filter_that_keeps_no_others() -> None:
    """Why the method keeps a minimum: every alternative to a memorised token is far below it."""
    main = torch.tensor([9.0] + [0.0] * 63)
    knows = torch.tensor([9.0] + [0.0] * 63)
    alone = combine([main, knows], Combination((-1.5,), filter=1e-2, min_keep=1))
    assert alone.argmax() == 0
    assert combine([main, knows], Combination((-1.5,), filter=1e-2, min_keep=20)).argmax() != 0


def test_gradients_flow_to_every_model_at_the_kept_tokens() -> None:
    main, other = draws(1, 6).double().requires_grad_(), draws(2, 6).double().requires_grad_()
    rule = Combination((-0.5,), filter=0.05, min_keep=2)
    torch.autograd.gradcheck(lambda a, b: torch.log_softmax(combine([a, b], rule), -1), (main, other))


def test_rules_out_of_range_are_refused_together() -> None:
    with pytest.raises(BadInput, match=r"(?s)weights.*filter.*min_keep"):
        Combination((math.nan,), filter=2.0, min_keep=0)
