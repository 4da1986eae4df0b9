"""Token statistics against the formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from expunge.tasks import statistics
from expunge.tasks.statistics import Statistics, head_rows, token_statistics


def by_formula(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Log p of the target, sum p log p, variance of log p, argmax hit: in float64, 0 log 0 = 0."""
    out = []
    for row, target in zip(logits.astype(np.float64), targets, strict=True):
        shifted = row - row.max()
        log_p = shifted - np.log(np.exp(shifted).sum())
        p = np.exp(log_p)
        seen = p > 0
        mean = (p[seen] * log_p[seen]).sum()
        variance = (p[seen] * (log_p[seen] - mean) ** 2).sum()
        out.append((log_p[target], mean, variance, float(log_p.argmax() == target)))
    return np.array(out).T


@given(
    logits=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(2, 9)), elements=st.floats(-60, 60, width=32)
    ),
    data=st.data(),
)
def test_token_statistics_are_the_formulas(logits: np.ndarray, data: st.DataObject) -> None:
    targets = np.array([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits])
    found = token_statistics(torch.from_numpy(logits), torch.from_numpy(targets))
    expected = by_formula(logits, targets)
    np.testing.assert_allclose(found[:3], expected[:3], rtol=1e-4, atol=1e-4)
    # A hit has the largest logit, as far as the log-probabilities can tell.
    behind = logits.max(axis=1) - logits[np.arange(len(logits)), targets]
    assert (behind[found[3] == 1] < 1e-4).all()
    assert (behind[found[3] == 0] >= 0).all()


def test_impossible_tokens_do_not_make_nan() -> None:
    logits = torch.tensor([[0.0, -float("inf"), 1.0], [3e4, -3e4, 0.0]])
    found = token_statistics(logits, torch.tensor([1, 0]))
    assert found[0, 0] == -np.inf
    p = np.exp([0.0, 1.0]) / np.exp([0.0, 1.0]).sum()
    mean = (p * np.log(p)).sum()
    assert found[1, 0] == pytest.approx(mean, rel=1e-6)
    assert found[2, 0] == pytest.approx((p * (np.log(p) - mean) ** 2).sum(), rel=1e-6)
    assert found[:, 1].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_the_variance_of_a_nearly_uniform_prediction_keeps_its_digits() -> None:
    # Logits +-0.001 over 4096 entries: the variance is 1e-6 and the mean -8.3, whose square has 69 in front.
    logits = torch.full((1, 4096), 0.001)
    logits[:, ::2] = -0.001
    found = token_statistics(logits, torch.tensor([0]))
    assert found[2, 0] == pytest.approx(1e-6, rel=1e-2)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(7, 11), torch.arange(7)
    whole = token_statistics(logits, targets)
    monkeypatch.setattr(statistics, "LOGIT_CHUNK", 22)
    np.testing.assert_array_equal(token_statistics(logits, targets), whole)
    assert token_statistics(torch.empty(0, 11), torch.empty(0, dtype=torch.long)).shape == (4, 0)


def example() -> Statistics:
    return Statistics(
        logits=torch.randn(5, 4, dtype=torch.float64),
        targets=torch.tensor([1, -100, 3, 0, 2]),
        example=torch.tensor([0, 0, 1, 1, 2]),
        counts=torch.tensor([1, 2, 1]),
        ids=["a", "b", "c"],
        hidden=torch.randn(5, 3),
    )


def test_sums_and_means_per_example() -> None:
    stats = example()
    nll = -stats.logits.log_softmax(-1)
    rows = [nll[0, 1], 0.0, nll[2, 3], nll[3, 0], nll[4, 2]]
    assert torch.allclose(stats.nll, torch.tensor(rows, dtype=torch.float64))
    sums = torch.tensor([rows[0], rows[2] + rows[3], rows[4]], dtype=torch.float64)
    assert torch.allclose(stats.sequence_nll, sums)
    assert torch.allclose(stats.mean_nll, sums / torch.tensor([1, 2, 1]))


@pytest.mark.parametrize("sizes", [(1, 2), (2, 1), (3,), (0, 3), (1, 1, 1)])
def test_splitting_gives_back_the_streams(sizes: tuple[int, ...]) -> None:
    stats = example()
    parts = stats.split(sizes)
    assert [i for part in parts for i in part.ids] == ["a", "b", "c"]
    assert torch.equal(torch.cat([part.sequence_nll for part in parts]), stats.sequence_nll)
    assert torch.equal(torch.cat([part.hidden for part in parts if part.hidden is not None]), stats.hidden)
    for part in parts:
        assert part.example.tolist() == [] or part.example[0] == 0


def test_only_chosen_rows_pass_the_head_and_no_hook_stays() -> None:
    head, hidden = nn.Linear(3, 5), torch.randn(2, 4, 3)
    with head_rows(head, torch.tensor([1, 6])) as seen:
        out = head(hidden)
    assert torch.equal(out[0], head(hidden).reshape(8, 5)[[1, 6]])
    assert torch.equal(seen[0], hidden.reshape(8, 3)[[1, 6]])
    with pytest.raises(RuntimeError, match="inside"), head_rows(head, torch.tensor([0])):
        raise RuntimeError("inside")
    assert not head._forward_pre_hooks


def test_long_answers_are_added_up_without_drift() -> None:
    tokens = 16 * torch.rand(2, 2000, generator=torch.Generator().manual_seed(1))
    example = torch.tensor([0, 1]).repeat_interleave(2000)
    stats = Statistics(
        torch.empty(4000, 1), torch.zeros(4000, dtype=torch.long), example, torch.tensor([2000] * 2), "ab"
    )
    sums = stats.per_example(tokens.flatten())
    assert sums.dtype == torch.float32
    # No further off than the nearest float32, which at 16000 is 2^-10.
    assert (sums.double() - tokens.double().sum(1)).abs().max() <= 2**-11
