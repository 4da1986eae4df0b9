"""Small worlds: found again instead of trained again, and the models know what they should."""

from __future__ import annotations

import pytest

from expunge.reproductions.base import Workbench
from expunge.reproductions.world import SIZES, WorldSettings, small_world
from expunge.training.probe import measure

SMALLEST = WorldSettings(
    people=20,
    relations=("pet",),
    vocabulary=400,
    shape={"hidden": 32, "layers": 1, "heads": 2},
    training={**SIZES["tiny"].training, "epochs": 60, "learning_rate": 2e-2},
    extra=(("What is said of nobody?", "Nothing at all."),),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    return Workbench(folder / "seed-0", folder / "shared", quick=True)


def test_the_original_knows_the_forgotten_and_the_oracle_does_not(bench: Workbench) -> None:
    world = small_world(bench, 0, SMALLEST)
    sets = {role: world.original.encode(examples) for role, examples in world.request.sets().items()}
    original, oracle = measure(world.original, sets), measure(world.oracle, sets)
    assert original["retain"][1] > 0.9
    assert original["forget"][1] > 0.9
    assert oracle["forget"][1] < 0.7 < 0.9 < oracle["retain"][1]
    said = world.original.score([("What is said of nobody?", "Nothing at all.")])[0]
    assert said.probability > 0.9
    assert {p.name for p in world.people.forget}.isdisjoint(p.name for p in world.people.retain)


def test_a_world_is_found_again_by_settings_and_seed(bench: Workbench) -> None:
    first = small_world(bench, 0, SMALLEST)
    stamp = (first.folder / "original/model/model.safetensors").stat().st_mtime_ns
    again = small_world(bench, 0, SMALLEST, oracles=0)
    assert (again.folder / "original/model/model.safetensors").stat().st_mtime_ns == stamp
    assert again.request.fingerprint == first.request.fingerprint
    assert again.oracles == ()
    other = small_world(bench, 1, SMALLEST, oracles=0)
    assert other.folder != first.folder
    assert other.request.fingerprint != first.request.fingerprint


def test_sizes_are_what_they_are_called() -> None:
    assert SIZES["tiny"].people < SIZES["small"].people
    assert SIZES["deep"].shape["layers"] > SIZES["small"].shape["layers"]
