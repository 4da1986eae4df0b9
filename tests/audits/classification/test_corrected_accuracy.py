from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from expunge.audits.classification.corrected_accuracy import (
    CorrectedAccuracy,
    attack_success,
    corrected,
    corruption_of,
)
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictions import Predictions
from expunge.tasks.predictor import Predictor

SAYS = {"a": (2.0, 0.0, 0.0), "b": (0.0, 2.0, 0.0), "c": (0.0, 0.0, 2.0)}


def named(labels: str, clean: str) -> Dataset:
    return Dataset.from_list(
        [{"id": f"f{k}", "label": x, "clean_label": y} for k, (x, y) in enumerate(zip(labels, clean, strict=True))]
    )


def test_examples_of_the_attackers_class_do_not_count() -> None:
    """Of b, c, c (true) two are taken for a; two a are right and prove nothing."""
    found = Predictions(
        list("12345"), np.array([SAYS[k] for k in "aaaac"]), np.array([0, 0, 1, 2, 2]), classes=tuple("abc")
    )
    assert attack_success(found, 0) == pytest.approx(200 / 3)
    assert corrected(found, 0) == pytest.approx(100 / 3)
    assert corrected(found) == 60.0
    with pytest.raises(ValueError, match="another class"):
        attack_success(found.take([0, 1]), 0)
    with pytest.raises(ValueError, match="affected domain"):
        corrected(found.take([0, 1]), 0)


@pytest.mark.parametrize(
    ("labels", "clean", "kind"),
    [("aaa", "bcb", "poison"), ("ab", "ba", "confusion"), ("bb", "aa", "confusion"), ("abc", "bca", "confusion")],
)
def test_what_was_done_shows_in_the_labels(labels: str, clean: str, kind: str) -> None:
    assert corruption_of(named(labels, clean)).kind == kind


def test_confused_classes_are_told_from_the_others(guesser: Callable, make_labelled: Callable) -> None:
    forget, test = named("ab", "ba"), make_labelled("aabbcc", 100)
    says = dict(zip(test["id"], (SAYS[k] for k in "abbbcc"), strict=True)) | dict.fromkeys(forget["id"], SAYS["a"])

    class Named(guesser):  # type: ignore[misc]
        @property
        def outcome(self) -> Any:
            from expunge.tasks.outcomes import Classes

            return Classes(self.classes)

    request = DeletionRequest(forget, None, test, scenario="corrupted", known_fraction=0.5)
    found = run_one(CorrectedAccuracy(), Observations({"unlearned": Named(says)}, request))
    assert found.status == "measured", found.note
    assert found.estimates["unlearned"]["acc_corr"].value == 75.0
    assert found.estimates["unlearned"]["acc_retain"].value == 100.0
    assert found.attempted["kind"] == "confusion"
    other = DeletionRequest(forget, None, test)
    assert run_one(CorrectedAccuracy(), Observations({"unlearned": Named(says)}, other)).status == "no data"


def test_a_poison_is_triggered_by_its_patch(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset]
) -> None:
    test = tiny_rows("resnet", range(30, 60))
    names = sorted(set(test["label"]))
    forget = tiny_rows("resnet", range(6)).remove_columns("label").add_column("label", [names[0]] * 6)
    request = DeletionRequest(
        forget.add_column("clean_label", names * 2), tiny_rows("resnet", range(6, 12)), test, scenario="corrupted"
    )
    models = {"unlearned": tiny_predictor("resnet")}
    without = run_one(CorrectedAccuracy(), Observations(models, request))
    assert without.status == "no data"
    assert "patch" in without.note
    found = run_one(CorrectedAccuracy(CorrectedAccuracy.Config(patch=3)), Observations(models, request))
    assert found.status == "measured", found.note
    own = found.estimates["unlearned"]
    assert own["acc_corr"].n == own["attack_success"].n == 20
    assert own["acc_retain"].n == 30
    assert own["acc_corr"].value + own["attack_success"].value <= 100.0
