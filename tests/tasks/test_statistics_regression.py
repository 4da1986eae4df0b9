"""Statistics of numbers: the NLL and the divergence of normal distributions of variance 1/2, up to a constant."""

from __future__ import annotations

import math

import torch
from torch.distributions import Normal, kl_divergence

from expunge.tasks.statistics import RegressionStatistics
from expunge.training.objective import Term, kl_to_reference

OUTPUTS, TRUE, REFERENCE = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0))


def stats() -> RegressionStatistics:
    return RegressionStatistics(
        OUTPUTS, TRUE, torch.arange(4), torch.ones(4, dtype=torch.int64), list("abcd"),
        reference_logits=REFERENCE.__getitem__,
    )  # fmt: skip


def test_against_normal_distributions() -> None:
    width = math.sqrt(0.5)
    exact = -Normal(OUTPUTS, width).log_prob(TRUE).mean(-1)
    constant = 0.5 * math.log(math.pi)
    torch.testing.assert_close(stats().nll, exact - constant)
    torch.testing.assert_close(
        kl_to_reference(stats()), kl_divergence(Normal(REFERENCE, width), Normal(OUTPUTS, width)).mean(-1)
    )


def test_a_target_that_looks_like_no_label_counts() -> None:
    odd = stats()
    odd.targets = torch.full((4, 2), -100.0)
    term = Term("nll", ("retain",), lambda s: s.nll, "token_mean")
    assert float(term.partial_sum([odd])) > 1e4


def test_streams_are_cut_apart_again_as_what_they_are() -> None:
    first, second = stats().split([1, 3])
    assert isinstance(first, RegressionStatistics)
    assert (len(first), len(second)) == (1, 3)
    torch.testing.assert_close(torch.cat([first.nll, second.nll]), stats().nll)
    assert second.example.tolist() == [0, 1, 2]
