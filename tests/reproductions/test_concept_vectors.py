"""How the numbers of the ConceptVectors reproduction are judged."""

from __future__ import annotations

import pytest

from expunge.reproductions.concept_vectors import ConceptVectorsReproduction

RUN = {
    "located": 1.0,
    **{f"jaccard_{m}": 0.9 for m in ("grad_diff", "npo")},
    **{f"random_jaccard_{m}": 0.9 for m in ("grad_diff", "npo")},
    **{f"rouge_target_{m}": 0.4 for m in ("grad_diff", "npo")},
    **{f"gain_{m}": 0.3 for m in ("grad_diff", "npo")},
    "jaccard_needle": 0.2,
    "gain_needle": 0.1,
}


def judged(**changed: float) -> list[bool]:
    return [check.holds for check in ConceptVectorsReproduction().judge([RUN, {**RUN, **changed}])]


def test_the_claim_holds_on_numbers_like_the_papers() -> None:
    assert all(judged())


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"located": 0.1}, [0]),
        ({"jaccard_npo": 0.5}, [2]),
        ({"jaccard_needle": 0.95}, [3, 4]),
        ({"gain_needle": 0.35}, [5, 6]),
    ],
)
def test_each_part_can_fail_in_one_seed(changed: dict[str, float], failing: list[int]) -> None:
    assert [k for k, holds in enumerate(judged(**changed)) if not holds] == failing


def test_a_method_that_never_got_there_is_no_success() -> None:
    without = {key: value for key, value in RUN.items() if not key.endswith("needle")}
    checks = ConceptVectorsReproduction().judge([RUN, without])
    assert [check.holds for check in checks[3:]] == [False] * 4
    assert all("did not reach the level" in check.detail for check in checks[3:])
    without = {key: value for key, value in RUN.items() if not key.endswith("npo")}
    assert "did not reach" in ConceptVectorsReproduction().judge([without])[2].detail
