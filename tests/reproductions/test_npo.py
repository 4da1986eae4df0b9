"""The drift law, and the parts it is measured with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.reproductions.npo import NPOReproduction, bernoulli_kl, descend
from expunge.reproductions.runner import reproduce


def test_the_drift_law_holds_in_the_quick_version(tmp_path: Path) -> None:
    result = reproduce("npo", quick=True, out=tmp_path)
    assert result.holds, [c for c in result.checks if not c.holds]


def test_descent_on_a_parabola_follows_the_closed_form() -> None:
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    path = descend(start, lambda a: 0.5 * a.square().sum(), [1, 3], rate=0.1)
    for steps, weights in zip((1, 3), path, strict=True):
        assert torch.allclose(weights, start * 0.9**steps)


def test_binary_divergence_matches_the_distributions_of_torch() -> None:
    p, q = torch.tensor([0.3, -2.0, 40.0]), torch.tensor([1.0, -2.0, -40.0])
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=p.double()), torch.distributions.Bernoulli(logits=q.double())
    )
    assert torch.allclose(bernoulli_kl(p.double(), q.double()), expected, rtol=1e-6)


def test_a_law_that_is_not_there_is_seen() -> None:
    numbers = {f"{m}_drift_{t}": float(t) for m in ("ga", "npo") for t in (250, 500, 1000)}
    checks = NPOReproduction().judge([numbers | {"ga_kl_to_retrained": 1.0, "npo_kl_to_retrained": 1.0}])
    assert [check.holds for check in checks] == [True, False, False, False]


@pytest.mark.parametrize("method", ["ga", "npo"])
def test_numbers_follow_from_the_seed(method: str, tmp_path: Path) -> None:
    runs = [reproduce("npo", seeds=(s,), quick=True, out=tmp_path / str(k)).runs[s] for k, s in enumerate((3, 3, 4))]
    key = f"{method}_drift_500"
    assert runs[0][key] == runs[1][key] != runs[2][key]
