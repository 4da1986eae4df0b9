from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.benchmarks.predictor_data import read_data
from expunge.benchmarks.worst_case_sets import SetsPlan, selector_settings
from expunge.errors import BadInput


def plan(out: Path, **change: Any) -> SetsPlan:
    given: dict[str, Any] = {"dataset": "digits", "where": None, "size": 60, "scenarios": ("margin",), "methods": (),
                             "seeds": (0,), "count": 1, "given": {}, "out": out, "jobs": 1, **change}  # fmt: skip
    return SetsPlan(**given)


def test_what_is_forgotten_stands_in_the_file(tmp_path: Path) -> None:
    train, test = read_data("digits", None, 60)
    wanted = sorted(train["id"])[:5]
    file = plan(tmp_path).ids("margin", 0)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"ids": wanted}))
    request = plan(tmp_path).place("margin", 0).request()[0]
    assert sorted(request.forget["id"]) == wanted
    assert request.retain is not None
    assert len(request.retain) == 55
    assert request.holdout is not None
    assert list(request.holdout["id"]) == list(test["id"])
    assert (request.scenario, request.name) == ("examples", "margin")


def test_the_seed_of_the_trials_has_a_set_of_its_own(tmp_path: Path) -> None:
    assert plan(tmp_path).every_seed == (0,)
    assert plan(tmp_path, count=2).every_seed == (0, 1000)


def test_each_selector_gets_what_it_knows() -> None:
    found = selector_settings(("random", "worst_case"), {"iterations": 3}, 0.2)
    assert found == {"random": {"share": 0.2}, "worst_case": {"share": 0.2, "iterations": 3}}


@pytest.mark.parametrize(
    ("sets", "given", "words"),
    [
        (("worst",), {}, "worst_case"),
        (("class",), {}, "told what to forget by name"),
        (("random",), {"iterations": 3}, "none of the selectors"),
        (("worst_case",), {"iterations": 0}, "iterations"),
        (("random",), {"share": 0.5}, "none of the selectors"),
    ],
)
def test_what_cannot_be_is_refused(sets: tuple[str, ...], given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        selector_settings(sets, given, 0.1)
