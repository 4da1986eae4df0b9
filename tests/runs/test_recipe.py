from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.runs.recipe import Recipe, differences, read_recipe, to_yaml, try_read_recipe

NEEDED = {"model": "m", "forget": "f.jsonl"}


def recipe_file(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def messages(error: pytest.ExceptionInfo[BadInput]) -> list[str]:
    return [str(problem) for problem in error.value.problems]


def test_options_win_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "model: a\nforget: f\nmethod: simnpo\nsettings: {beta: 1.0, stop: {every: 3}}\n")
    recipe = read_recipe(file, {"model": "b", "retain": None, "oracle": []}, ["beta=0.5", "stop.every=7"])
    assert (recipe.model, recipe.method, recipe.retain, recipe.oracle) == ("b", "simnpo", None, ())
    assert recipe.settings == {"beta": 0.5, "stop": {}, "stop.every": 7}


@pytest.mark.parametrize(
    ("text", "where", "value"),
    [
        ("learning_rate=1e-5", ("settings", "learning_rate"), 1e-5),
        ("epochs=3", ("settings", "epochs"), 3),
        ("retain=kl", ("settings", "retain"), "kl"),  # a setting of NPO, not the retain file
        ("retain=none", ("settings", "retain"), "none"),
        ("x=no", ("settings", "x"), "no"),
        ("parity=true", ("settings", "parity"), True),
        ("retain_ceiling=null", ("settings", "retain_ceiling"), None),
        ("settings.beta=.5", ("settings", "beta"), 0.5),
        ("template=a=b", ("settings", "template"), "a=b"),
        ("verdict.alpha=1e-2", ("verdict", "alpha"), 0.01),
        ("audits.relearning.steps=[0, 4]", ("audit_settings", "relearning", "steps"), [0, 4]),
        ("limits.retain=40", ("audit_limits", "retain"), 40),
        ("columns.answer=reply", ("columns", "answer"), "reply"),
        ("splits.retain=train", ("splits", "retain"), "train"),
    ],
)
def test_set_puts_a_yaml_value_where_it_belongs(text: str, where: tuple[str, ...], value: Any) -> None:
    found: Any = read_recipe(None, NEEDED, [text]).model_dump()
    for key in where:
        found = found[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["epochs", "=3", "audits.x=1", "verdict=1", "a b=1", "x.=2", "x=[1"])
def test_an_override_that_cannot_be_understood_is_named(text: str) -> None:
    with pytest.raises(BadInput) as error:
        read_recipe(None, NEEDED, [text])
    assert messages(error)[0].startswith(f"--set {text}")


def test_every_problem_is_reported_with_its_line(tmp_path: Path) -> None:
    text = "model: m\nmetod: npo\nlearning_rate: 1e-4\ndtype: float33\ndtype: float16\naudit_limits: {retain: 0}\n"
    with pytest.raises(BadInput) as error:
        read_recipe(recipe_file(tmp_path, text), {"seed": -1}, ["oops"])
    found = messages(error)
    for part in (
        "line 2, metod: is not a part of a recipe -> did you mean method",
        "line 3, learning_rate: is not a part of a recipe -> it is a setting of training: write it under `settings:`",
        "line 5: says 'dtype' again, first on line 4",
        "line 6, audit_limits.retain: input should be greater than 0 (given: 0)",
        "seed: input should be greater than or equal to 0",
        "forget: is missing",
        "--set oops",
    ):
        assert any(part in message for message in found), (part, found)


def test_a_value_that_is_not_among_those_allowed_is_met_with_near_ones() -> None:
    for wrong, fix in (("float23", "did you mean float32 or float16?"), ("half", "known: bfloat16, float16, float32")):
        with pytest.raises(BadInput) as error:
            read_recipe(None, {**NEEDED, "dtype": wrong})
        said = f"input should be 'float32', 'bfloat16' or 'float16' (given: '{wrong}')"
        assert messages(error) == [f"recipe: dtype: {said} -> {fix}"]


def test_what_stands_in_a_file_that_cannot_be_read_is_not_missing(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "model: m\nforget: f\nsettings: {epochs: 2\nmethod: npo\n")
    with pytest.raises(BadInput) as error:
        read_recipe(file, {"seed": -1})
    found = messages(error)
    assert [message.partition(": ")[0] for message in found] == [f"{file} line 4", "recipe"]
    assert "seed" in found[1]


def test_what_is_right_can_be_checked_beside_what_is_wrong() -> None:
    recipe, problems = try_read_recipe(None, {**NEEDED, "dtype": "float33", "method": "simnpo"})
    assert len(problems) == 1
    assert recipe is not None
    assert (recipe.method, recipe.dtype) == ("simnpo", "float32")
    assert try_read_recipe(None, {"model": "m"})[0] is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n", "holds no keys"),
        ("", "holds no keys"),
        ("a: [1\n", "line 2: is not YAML"),
        ("a: \x07\n", "is not YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(BadInput, match=part):
        read_recipe(recipe_file(tmp_path, text), NEEDED)


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not there"):
        read_recipe(tmp_path / "no.yaml", NEEDED)
    with pytest.raises(BadInput, match="is a folder -> give the file in it"):
        read_recipe(tmp_path, NEEDED)


def test_what_a_command_would_ignore_is_refused(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "model: m\nforget: f\nmethod: npo\n")
    with pytest.raises(BadInput, match="line 3, method: is not used by `expunge audit`"):
        read_recipe(file, command="audit")
    with pytest.raises(BadInput, match="settings: is not used by `expunge audit`"):
        read_recipe(None, NEEDED, ["epochs=3"], command="audit")
    with pytest.raises(BadInput, match="original: is not used by `expunge unlearn`"):
        read_recipe(None, {**NEEDED, "original": "o"})


def test_no_tag_makes_an_object(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, "model: !!python/object/apply:os.getcwd []\nforget: f\n")
    with pytest.raises(BadInput, match="is not YAML"):
        read_recipe(file)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False),
    st.text("abeE01.-+ =:#é\n~", max_size=8),
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), values, max_size=5))
def test_a_recipe_survives_being_written_down(settings: dict[str, Any]) -> None:
    recipe = Recipe(**NEEDED, settings=settings, oracle=("a", "b"))
    folder = to_yaml(recipe.to_dict("unlearn"))
    from expunge.runs.recipe import _Loader

    assert Recipe(**yaml.load(folder, Loader=_Loader)) == recipe
    assert differences(yaml.safe_load(folder), recipe.to_dict("unlearn")) == []


def test_differences_are_named() -> None:
    assert differences({"a": 1, "b": {"c": 1, "d": 2}}, {"a": 1, "b": {"c": 2, "d": 2}, "e": 0}) == ["b.c", "e"]


def test_a_set_that_is_none_is_named_as_it_was_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        read_recipe(None, NEEDED, ["limits.retain=0"])
    assert messages(error)[0].startswith("recipe: limits.retain: input should be greater than 0")
    with pytest.raises(BadInput) as error:
        read_recipe(None, NEEDED, ["limits.foo=3", "splits.retian=x"])
    known = "known: forget, holdout, retain"
    assert messages(error) == [
        f"--set limits.foo: names no set -> {known}",
        "--set splits.retian: names no set -> did you mean retain?",
    ]
    with pytest.raises(BadInput) as error:
        read_recipe(recipe_file(tmp_path, "model: m\nforget: f\naudit_limits: {foo: 3}\n"), {})
    assert "line 3, audit_limits.foo: names no set" in messages(error)[0]
