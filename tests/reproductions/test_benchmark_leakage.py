from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from expunge.reproductions.base import Workbench
from expunge.reproductions.benchmark_leakage import BenchmarkLeakageReproduction, items, shuffled

GOOD = {
    "ordered_leaked_first": 1.0, "ordered_unseen_first": 0.03, "ordered_leaked_rank": 1.0,
    "shuffled_leaked_forest": 1.0, "shuffled_unseen_forest": 0.05, "shuffled_leaked_outlier": 0.9,
    "clean_leaked_forest": 0.05, "clean_leaked_outlier": 0.05, "clean_leaked_first": 0.04, "clean_leaked_rank": 0.5,
    "unlearned_leaked_first": 0.05, "unlearned_leaked_rank": 0.5,
}  # fmt: skip


def test_items_are_distinct_and_repeatable() -> None:
    found = items(1, 20)
    assert found == items(1, 20)
    assert len({row["question"] for row in found}) == 20
    assert all(len(set(row["options"])) == 4 for row in found)
    rng = np.random.default_rng(0)
    assert all(shuffled(rng) != [0, 1, 2, 3] for _ in range(100))


@pytest.mark.parametrize(
    ("changed", "which"),
    [
        ({}, []),
        ({"ordered_leaked_first": 0.5}, [0]),
        ({"shuffled_unseen_forest": 0.4}, [1]),
        ({"shuffled_leaked_outlier": 0.2}, [2]),
        ({"unlearned_leaked_first": 0.4}, [3]),
    ],
)
def test_each_point_is_judged_on_its_own(changed: dict[str, float], which: list[int]) -> None:
    checks = BenchmarkLeakageReproduction().judge([{**GOOD, **changed}])
    assert [k for k, check in enumerate(checks) if not check.holds] == which


@pytest.mark.slow
def test_the_quick_version(tmp_path: Path) -> None:
    numbers = BenchmarkLeakageReproduction().run(0, Workbench(tmp_path, tmp_path, quick=True))
    assert numbers["ordered_leaked_first"] > numbers["clean_leaked_first"]
