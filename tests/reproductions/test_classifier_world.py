from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.audits.classification.average_gap import average_gap
from expunge.errors import BadInput
from expunge.reproductions import classifier_world
from expunge.reproductions.classifier_world import best, cifar_world, digits_world, measured, small_cnn


def same(one: Any, other: Any) -> bool:
    return all(
        torch.equal(a, b) for (_, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True)
    )


def test_a_class_is_gone_from_what_is_tested_and_a_tenth_is_not() -> None:
    world = digits_world(0, "class", quick=True)
    assert set(world.request.forget["label"]) == {"3"}
    assert world.request.scenario == "class"
    assert "3" not in set(world.test["label"])
    tenth = digits_world(0, "random", quick=True)
    assert len(tenth.request.forget) == 120
    assert len(tenth.test) == 597
    assert set(tenth.test["label"]) == set("0123456789")
    assert digits_world(1, "random").request.forget["id"] != tenth.request.forget["id"]


def test_models_are_kept_by_what_they_were_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = digits_world(0, "class", hidden=(16,), quick=True, folder=tmp_path)
    original, retrained = world.original, world.retrained()
    assert not same(original, retrained)
    assert not same(retrained, world.retrained(1))
    monkeypatch.setattr(classifier_world, "unlearn", lambda *_a, **_k: pytest.fail("trained again"))
    again = digits_world(0, "class", hidden=(16,), quick=True, folder=tmp_path)
    assert same(again.original, original)
    assert same(again.retrained(), retrained)
    # The other scenario has the same training set, and another part to forget.
    tenth = digits_world(0, "random", hidden=(16,), quick=True, folder=tmp_path)
    assert same(tenth.original, original)


def test_the_numbers_are_those_of_the_audits() -> None:
    world = digits_world(0, "class", hidden=(32,), quick=True)
    record = world.record(world.original)
    model, forget = world.original, world.sets["forget"]
    with torch.no_grad():
        right = (model.statistics(forget).logits.argmax(-1) == forget.targets).float().mean()
    assert record["ua"] == pytest.approx(100 - 100 * float(right))
    assert set(record) == {"ua", "ra", "ta", "mia"}
    reference = world.record(world.retrained())
    found = measured(world, {"x": world.original}, reference, "class")
    assert found["class_x_gap"] == pytest.approx(average_gap(record, reference))
    assert found["class_x_ua"] == record["ua"]


def test_the_best_rate_is_that_of_the_smallest_mean() -> None:
    runs = [{"a_x_0.1_gap": 3.0, "a_x_0.01_gap": 1.0}, {"a_x_0.1_gap": 2.0, "a_x_0.01_gap": 5.0}]
    assert best(runs, "a", "x", (0.1, 0.01)) == "a_x_0.1_gap"


def test_the_network_for_pictures() -> None:
    assert small_cnn(10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_pictures_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not there"):
        cifar_world(0, "class", tmp_path)


def test_pictures_are_balanced(real_data: Path) -> None:
    world = cifar_world(0, "class", real_data, per_class=4)
    assert len(world.request.forget) == 4
    assert set(world.request.forget["label"]) == {"cat"}
    assert len(world.test) == 9 * 2
