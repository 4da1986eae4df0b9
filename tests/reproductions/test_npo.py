"""The drift law, and the parts it is measured with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expunge.reproductions.npo import METHODS, NPOReproduction, bernoulli_kl, descend, drift_law
from expunge.reproductions.runner import reproduce


def test_the_quick_version_measures_everything_and_the_drift_law_holds(tmp_path: Path) -> None:
    result = reproduce("npo", seeds=(0,), quick=True, out=tmp_path)
    assert [check.holds for check in result.checks[:4]] == [True] * 4, result.checks
    assert {f"kept_after_{method}" for method in METHODS} | {"kept_before"} <= set(result.measured)
    assert result.runs[0]["kept_before"] > 0.8


@pytest.mark.parametrize("seed", [3, 4])
def test_the_drift_law_does_not_hang_on_the_seed(seed: int) -> None:
    found = drift_law(seed, (500, 1000), 3000)
    assert found["ga_drift_1000"] / found["ga_drift_500"] > 1.8
    assert found["npo_drift_1000"] / found["npo_drift_500"] < 1.2
    assert found == drift_law(seed, (500, 1000), 3000)


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
    numbers |= {"ga_kl_to_retrained": 1.0, "npo_kl_to_retrained": 1.0}
    numbers |= {f"kept_after_{m}": 0.5 for m in METHODS}
    checks = NPOReproduction().judge([numbers])
    assert [check.holds for check in checks] == [True, False, False, False, False, False, False]
