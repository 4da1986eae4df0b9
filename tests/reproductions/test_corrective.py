from __future__ import annotations

from expunge.reproductions.corrective import CorrectiveReproduction

NUMBERS = {
    "poison_original_acc_corr": 10.0,
    "poison_retrain_tenth_acc_corr": 12.0,
    "poison_ssd_tenth_acc_corr": 55.0,
    "poison_retrain_all_acc_corr": 60.0,
    "poison_finetune_all_acc_corr": 40.0,
    "poison_original_acc_retain": 72.0,
    "poison_ssd_tenth_acc_retain": 70.0,
    "poison_retrain_all_acc_retain": 72.0,
    "confusion_ssd_all_acc_corr": 20.0,
    "confusion_retrain_all_acc_corr": 60.0,
}


def holds(*runs: dict[str, float]) -> list[bool]:
    return [check.holds for check in CorrectiveReproduction().judge(runs)]


def test_the_claim_as_the_paper_has_it_and_each_way_it_can_fail() -> None:
    assert all(holds(NUMBERS, NUMBERS))
    for number, (key, value) in enumerate(
        [
            ("poison_retrain_tenth_acc_corr", 50.0),  # retraining would do
            ("poison_ssd_tenth_acc_corr", 30.0),  # SSD does too little
            ("poison_retrain_tenth_acc_corr", 56.0),  # no more than retraining
            ("poison_ssd_tenth_acc_retain", 60.0),  # at too high a price
            ("poison_retrain_all_acc_corr", 50.0),  # there is no gold standard
            ("confusion_ssd_all_acc_corr", 61.0),  # SSD mends labels as well
        ]
    ):
        other = {**NUMBERS, key: value}
        assert holds(NUMBERS, other)[number] is False, key


def test_a_model_that_nothing_changes_is_no_way_towards_the_gold_standard() -> None:
    stuck = {**NUMBERS, "poison_retrain_all_acc_corr": 10.0}
    assert holds(stuck)[1] is False
