"""One call for any kind of model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.loading import TASKS, load_task, options_of, task_class


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Any], tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("models") / "lm"
    CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer, template="{prompt}: {answer}").save(where)
    return where


def test_a_language_model_is_loaded_as_one(folder: Path) -> None:
    task = load_task(folder, dtype="float32", template=None)
    assert type(task) is CausalLM
    assert task.encoder.template == "{prompt}: {answer}"


def test_a_folder_of_another_tool_is_told_by_its_files(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        if file.name != "expunge.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert task_class(tmp_path) is CausalLM


def test_a_folder_that_is_no_model_is_refused_in_the_words_of_the_usual_kind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_task(tmp_path)


def test_a_kind_that_there_is_not_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "expunge.json").write_text(json.dumps({"task": "causal_ml"}))
    with pytest.raises(BadInput, match=r"'causal_ml', which there is not -> did you mean causal_lm"):
        load_task(tmp_path)


def test_options_of_another_kind_are_refused_all_at_once(folder: Path) -> None:
    with pytest.raises(BadInput) as error:
        load_task(folder, colour="red", size=3, dtype="float32")
    assert [problem.where for problem in error.value.problems] == ["colour", "size"]
    assert options_of(CausalLM, "x", {"dtype": None, "chat": "never"}) == {"chat": "never"}


def test_a_class_that_recognises_a_folder_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(CausalLM):
        id: ClassVar[str] = "other"

        @classmethod
        def recognises(cls, path: str | Path, config: Mapping[str, Any]) -> bool:
            return bool(config.get("model_type") == "other")

    monkeypatch.setitem(TASKS._classes, "other", Other)
    (tmp_path / "config.json").write_text('{"model_type": "other"}')
    assert task_class(tmp_path) is Other
    (tmp_path / "config.json").write_text("{")
    assert task_class(tmp_path) is CausalLM


def test_every_kind_has_the_name_of_its_registration() -> None:
    assert "causal_lm" in TASKS.names()
    assert all(TASKS.get(name).id == name for name in TASKS.names())
