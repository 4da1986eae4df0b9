from __future__ import annotations

from expunge.benchmarks.predictor_data import CLASSIFICATION, make_request, read_data
from expunge.benchmarks.predictor_measures import kept_test, measure_classifier


def test_the_test_set_of_a_class_is_without_it() -> None:
    train, test = read_data("digits", None, 100)
    some, whole = (make_request("digits", name, train, test, 0) for name in ("random", "class"))
    assert kept_test(some, test)["id"] == test["id"]
    kept = kept_test(whole, test)
    assert "3" not in kept["label"]
    assert whole.holdout is not None
    assert len(kept) + len(whole.holdout) == len(test)


def test_accuracies_are_shares_in_percent() -> None:
    train, test = read_data("digits", None, 100)
    task = CLASSIFICATION["digits"].start(train)
    request = make_request("digits", "class", train, test, 0)
    found = measure_classifier(task, request, test, 0)
    right = {
        name: 100 * task.observe(task.encode(examples)).correct.mean()
        for name, examples in (
            ("forget", request.forget), ("retain", request.retain), ("like", request.holdout),
            ("kept", kept_test(request, test)),
        )
    }  # fmt: skip
    assert found["ua"] == 100 - right["forget"]
    assert (found["ra"], found["ta"], found["fa"]) == (right["retain"], right["kept"], right["like"])
    assert 0 <= found["mia"] <= 100
    assert "fa" not in measure_classifier(task, make_request("digits", "random", train, test, 0), test, 0)
