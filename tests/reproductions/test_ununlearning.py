from __future__ import annotations

from expunge.reproductions.ununlearning import UnunlearningReproduction, best_guess, filtered


def test_a_filter_takes_out_the_sentences_that_name_somebody_and_leaves_the_question() -> None:
    assert filtered("s1 is c2 . x3 is c1 . s1 r0 ?", {"s1"}) == "x3 is c1 . s1 r0 ?"
    assert filtered("x7 is c2 . x7 r0 ?", {"s1"}) == "x7 is c2 . x7 r0 ?"
    assert filtered("s1 r0 ?", {"s1"}) == "s1 r0 ?"
    assert filtered("s11 is c2 . s1 r0 ?", {"s1"}) == "s11 is c2 . s1 r0 ?"


def test_the_best_guess_is_the_most_frequent_kept_value_of_the_relation() -> None:
    kept = [{"prompt": f"s{i} r0 ?", "answer": "v1" if i < 3 else "v2"} for i in range(4)]
    gone = [{"prompt": "s8 r0 ?", "answer": "v1"}, {"prompt": "s9 r0 ?", "answer": "v2"}]
    assert best_guess(kept, gone) == 0.5


def test_the_checks_come_out_either_way() -> None:
    good = {
        "oracle_right": 0.1, "guess": 0.1, "original_right": 1.0, "oracle_recovery_premises": 0.9,
        "unlearned_recovery_premises": 0.9, "excess_premises": 0.0, "unlearned_filtered_premises": 0.0,
        "unlearned_filtered_alias_premises": 0.9,
    }  # fmt: skip
    bad = {
        **good, "oracle_right": 0.5, "oracle_recovery_premises": 0.1, "unlearned_recovery_premises": 0.1,
        "excess_premises": 0.5, "unlearned_filtered_premises": 0.5, "unlearned_filtered_alias_premises": 0.1,
    }  # fmt: skip
    judge = UnunlearningReproduction().judge
    assert all(check.holds for check in judge([good, good]))
    assert not any(check.holds for check in judge([good, bad]))
