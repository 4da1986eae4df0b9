"""The TOFU table: what is compared with what."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.benchmarks.tofu_result import TofuResult, matched


def cell(method: str, seed: int, utility: float, forget_nll: float = 3.0) -> dict[str, Any]:
    return {
        "split": "forget01", "method": method, "seed": seed, "forget_nll": forget_nll, "target_nll": 3.0,
        "oracle_nll": 7.0, "original_nll": 0.0, "model_utility/utility": utility,
    }  # fmt: skip


FACTS = {"models": "small", "rows": "few", "target": "3.0 nats per token"}


def test_matched_means_within_a_tenth_of_the_way() -> None:
    assert matched(cell("npo", 0, 0.5, 2.71))
    assert matched(cell("npo", 0, 0.5, 3.3))
    assert not matched(cell("npo", 0, 0.5, 2.69))


def test_methods_are_compared_pairwise_over_seeds_that_forgot_equally() -> None:
    cells = [cell("npo", s, 0.6 + 0.01 * s) for s in range(4)] + [cell("gradient_ascent", s, 0.5) for s in range(4)]
    cells[3]["forget_nll"] = 1.0  # did not forget: must not enter
    found = TofuResult(cells, FACTS).difference("forget01", "npo", "gradient_ascent")
    # Differences .10, .11, .12: mean .11, sd .01, t(2) at 97.5 % = 4.303, half width .01 / sqrt(3) * 4.303 = .0248.
    assert found.n == 3
    assert found.value == pytest.approx(0.11)
    assert found.low == pytest.approx(0.11 - 0.02484, abs=1e-4)
    assert "keeps more utility" in TofuResult(cells, FACTS).sentences("forget01")[0]


@pytest.mark.parametrize(
    ("npo", "words"),
    [([0.3, 0.31, 0.32], "keeps less utility"), ([0.2, 0.9, 0.5], "no difference"), ([0.5], "one seed")],
)
def test_the_sentence_says_whichever_way_it_came_out(npo: list[float], words: str) -> None:
    cells = [cell("npo", s, u) for s, u in enumerate(npo)] + [cell("gradient_ascent", s, 0.5) for s in range(len(npo))]
    assert words in TofuResult(cells, FACTS).sentences("forget01")[0]


def test_unequal_forgetting_is_not_compared() -> None:
    cells = [cell("npo", 0, 0.9, 1.0), cell("gradient_ascent", 0, 0.5)]
    assert "not comparable" in TofuResult(cells, FACTS).sentences("forget01")[0]
