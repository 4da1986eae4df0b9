"""A sweep's cells: methods times settings times seeds, checked before any runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.errors import BadInput
from expunge.runs.grid import plan_sweep


@pytest.fixture
def recipe(files: Any, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(files.fields()), encoding="utf-8")
    return path


def problems(*args: Any, **options: Any) -> list[str]:
    with pytest.raises(BadInput) as caught:
        plan_sweep(*args, **options)
    return [str(p) for p in caught.value.problems]


def test_a_grid_is_the_product_of_what_each_method_knows(recipe: Path) -> None:
    cells = plan_sweep(recipe, {}, ["beta=0.1,0.5", "learning_rate=1e-5,1e-4"], ["npo", "gradient_ascent"], [0, 1])
    npo = [c for c in cells if c.method == "npo"]
    assert len(npo) == 2 * 2 * 2
    assert {(c.settings["beta"], c.settings["learning_rate"]) for c in npo} == {
        (b, r) for b in (0.1, 0.5) for r in (1e-5, 1e-4)
    }
    other = [c for c in cells if c.method == "gradient_ascent"]
    assert len(other) == 2 * 2, "it has no beta"
    assert all(set(c.settings) == {"learning_rate"} for c in other)
    assert len({c.key for c in cells}) == len(cells)
    assert all(c.recipe.settings["seed"] == c.recipe.seed == c.seed for c in cells)


def test_cells_that_are_the_same_run_are_one(recipe: Path) -> None:
    cells = plan_sweep(recipe, {}, ["learning_rate=1e-5,0.00001"], ["npo", "npo"], [3, 3])
    assert len(cells) == 1
    again = plan_sweep(recipe, {}, ["learning_rate=1e-5"], ["npo"], [3])
    assert again[0].key == cells[0].key, "a key is made of what is run, not of how it was asked for"


def test_the_key_follows_the_content_of_the_data(recipe: Path, files: Any, tmp_path: Path) -> None:
    before = plan_sweep(recipe, {}, [], ["npo"], [0])[0].key
    copy = tmp_path / "forget.jsonl"
    copy.write_text(files.forget.read_text(encoding="utf-8"), encoding="utf-8")
    moved = plan_sweep(recipe, {"forget": str(copy)}, [], ["npo"], [0])[0].key
    copy.write_text("\n".join(files.forget.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    assert len({before, moved, plan_sweep(recipe, {"forget": str(copy)}, [], ["npo"], [0])[0].key}) == 3


def test_a_setting_for_one_method_wins(recipe: Path) -> None:
    cells = plan_sweep(recipe, {}, ["beta=0.1", "simnpo.beta=2.5,3"], ["npo", "simnpo"], [0])
    assert [(c.method, c.recipe.settings["beta"]) for c in cells] == [("npo", 0.1), ("simnpo", 2.5), ("simnpo", 3)]


def test_a_list_is_one_value(recipe: Path) -> None:
    overrides = ["audits.relearning.steps=[0, 1]", "stop.every=1,2"]
    cells = plan_sweep(recipe, {"audits": ["relearning"]}, overrides, ["npo"], [0])
    assert [c.recipe.settings["stop"]["every"] for c in cells] == [1, 2]
    assert all(list(c.recipe.audit_settings["relearning"]["steps"]) == [0, 1] for c in cells)


def test_methods_stop_at_the_level_unless_told_otherwise(recipe: Path) -> None:
    cells = plan_sweep(recipe, {}, ["npo.stop.keep=last"], ["gradient_ascent", "npo", "retrain"], [0], 3.0)
    stops = {c.method: c.recipe.settings["stop"] for c in cells}
    assert (stops["gradient_ascent"]["forget_target"], stops["gradient_ascent"]["keep"]) == (3.0, "closest")
    assert (stops["npo"]["forget_target"], stops["npo"]["keep"]) == (3.0, "last")
    assert stops["retrain"]["forget_target"] == "none", "a model that never knew has no level to stop at"


def test_every_method_that_lacks_something_is_named(files: Any, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**files.fields(), "retain": None}), encoding="utf-8")
    found = problems(path, {}, [], ["npo", "gradient_ascent", "grad_diff", "simnpo"], [0, 1])
    assert [line.split(":")[0] for line in found] == ["method npo", "method grad_diff", "method simnpo"]
    assert all("--retain" in line for line in found)


def test_everything_wrong_is_said_at_once(recipe: Path) -> None:
    overrides = ["bate=1", "simnpo.beta=1", "npo.betta=1", "limits.forget=1,2", "learning_rate=-1", "seed=4"]
    said = "\n".join(problems(recipe, {}, overrides, ["npo", "npoo"], []))
    for part in (
        "'npoo' is not a method -> did you mean npo",
        "--set bate",
        "add simnpo to --methods",
        "npo -> did you mean beta",
        "--set limits.forget=1,2: has several values",
        "learning_rate",
        "--seeds: are missing",
        "--set seed",
    ):
        assert part in said, said
