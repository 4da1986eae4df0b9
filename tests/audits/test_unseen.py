from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from expunge.audits.observations import Observations
from expunge.audits.suite import select_audits
from expunge.audits.unseen import add_test_set, unseen_sets
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest


def looked_at(guesser: Callable, request: DeletionRequest, **extra: Dataset) -> Observations:
    ids = [i for examples in (*request.sets().values(), *extra.values()) for i in examples["id"]]
    return Observations({"unlearned": guesser(dict.fromkeys(ids, (1.0, 0.0, 0.0)))}, request, extra=extra)


@pytest.mark.parametrize(
    ("scenario", "test", "like"),
    [
        ("examples", {"200", "201", "202", "300", "301"}, None),
        ("corrupted", {"200", "201", "202", "300", "301"}, None),
        ("class", {"201", "202", "300"}, {"200", "301"}),
        ("group", {"300", "301"}, {"200", "201", "202"}),
    ],
)
def test_unseen_examples_are_divided_as_the_scenario_says(
    guesser: Callable, make_labelled: Callable, scenario: str, test: set, like: set | None
) -> None:
    request = DeletionRequest(
        make_labelled("aa"), make_labelled("bcb", 100), make_labelled("abc", 200), scenario=scenario
    )
    found = unseen_sets(looked_at(guesser, request, test=make_labelled("ba", 300)), "unlearned")
    assert [None if part is None else set(part.ids) for part in found] == [test, like]


def test_nothing_unseen_is_none_and_examples_in_both_sets_count_once(
    guesser: Callable, make_labelled: Callable
) -> None:
    forget, retain, holdout = make_labelled("aa"), make_labelled("bc", 100), make_labelled("aa", 200)
    assert unseen_sets(looked_at(guesser, DeletionRequest(forget, retain)), "unlearned") == (None, None)
    only = looked_at(guesser, DeletionRequest(forget, retain, holdout, scenario="class"))
    test, like = unseen_sets(only, "unlearned")
    assert test is None
    assert like is not None
    twice = looked_at(guesser, DeletionRequest(forget, retain, holdout), test=make_labelled("aab", 200))
    test, _ = unseen_sets(twice, "unlearned")
    assert test is not None
    assert sorted(test.ids) == ["200", "201", "202"]


def test_a_test_set_is_read_once_for_all(tiny_predictor: Callable, tiny_rows: Callable, tmp_path: Path) -> None:
    request = DeletionRequest(tiny_rows("table", range(4)), tiny_rows("table", range(4, 8)))
    seen = Observations({"unlearned": tiny_predictor("table")}, request)
    add_test_set(seen, None)
    assert "test" not in seen.examples.roles
    file = tmp_path / "test.csv"
    tiny_rows("table", range(40, 45)).remove_columns("id").to_csv(str(file))
    add_test_set(seen, file)
    add_test_set(seen, tmp_path / "another.csv")  # there is one already
    test, _ = unseen_sets(seen, "unlearned")
    assert test is not None
    assert len(test) == 5


def test_a_test_set_that_is_not_there_is_refused_with_the_settings(tmp_path: Path) -> None:
    for audit in ("accuracies", "svc_mia", "threshold_mia"):
        with pytest.raises(BadInput, match=r"absent\.csv' is not there"):
            select_audits([audit], {audit: {"test": str(tmp_path / "absent.csv")}}, "image_classifier")
