from __future__ import annotations

from expunge.reproductions.open_problems import METHODS, OpenProblemsReproduction


def test_the_checks_come_out_either_way() -> None:
    good = {
        "oracle_direct": 1.0, "oracle_composed": 1.0, "original_hop": 1.0, "original_direct": 1.0,
        "original_composed": 1.0, "original_kept": 1.0, "oracle_hop": 1.0, "oracle_kept": 1.0,
    }  # fmt: skip
    bad = {**good, "oracle_direct": 0.0, "oracle_composed": 0.0}
    for method in METHODS:
        good |= {
            f"{method}_direct": 0.1, f"{method}_composed": 0.6, f"{method}_hop": 0.3, f"{method}_kept": 1.0,
            f"{method}_near_damage": 0.5, f"{method}_far_damage": 0.1, f"{method}_relearning_gain": 0.5,
            f"{method}_relearning_gain_unseen": 0.0,
        }  # fmt: skip
        bad |= {
            f"{method}_direct": 0.6, f"{method}_composed": 0.1, f"{method}_hop": 1.0, f"{method}_kept": 1.0,
            f"{method}_near_damage": 0.1, f"{method}_far_damage": 0.5, f"{method}_relearning_gain": 0.0,
            f"{method}_relearning_gain_unseen": 0.5,
        }  # fmt: skip
    judge = OpenProblemsReproduction().judge
    assert all(check.holds for check in judge([good, good]))
    assert not any(check.holds for check in judge([bad, bad]))
