from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from expunge.errors import BadInput
from expunge.methods.base import Unlearned
from expunge.runs.models import NotOffered, Wrapped, gather, model_path, stated_level
from expunge.tasks.causal_lm import CausalLM


@pytest.fixture
def task(tiny_model: Callable[..., tuple[PreTrainedModel, str]], tiny_tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return CausalLM(tiny_model(vocab=len(tiny_tokenizer))[0], tiny_tokenizer)


class Refuses:
    """Says nothing, whatever it is asked; otherwise the model inside."""

    def __init__(self, inner: CausalLM):
        self.inner = inner

    def score(self, pairs: Sequence[Any]) -> list[Any]:
        return self.inner.score(pairs)

    def generate(self, prompts: Sequence[Any], max_new_tokens: Sequence[int]) -> list[str]:
        return ["I cannot say." for _ in prompts]

    def copy(self) -> Refuses:
        return Refuses(self.inner.copy())


def test_a_path_is_loaded_once(files: Any) -> None:
    found = gather(str(files.model), files.model, [str(files.model)])
    assert list(found) == ["unlearned", "original", "oracle"]
    assert found["unlearned"] is found["original"] is found["oracle"]


def test_oracles_are_numbered(task: CausalLM) -> None:
    assert list(gather(task, None, [task, task, task])) == ["unlearned", "oracle", "oracle-2", "oracle-3"]


def test_every_model_that_does_not_work_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as error:
        gather(tmp_path / "a", 3, [tmp_path / "b"])  # type: ignore[arg-type, list-item]
    text = str(error.value)
    assert str(tmp_path / "a") in text
    assert str(tmp_path / "b") in text
    assert "is a int, which is no model" in text


def test_weights_that_are_no_numbers_are_refused_once_for_each_model(task: CausalLM) -> None:
    broken = task.copy()
    next(broken.model.parameters()).data.view(-1)[0] = float("inf")
    with pytest.raises(BadInput) as error:
        gather(task, broken, [broken])
    (problem,) = error.value.problems
    assert "NaN or infinite values in 1 of" in problem.what


def test_a_wrapped_model_counts_tokens_like_the_model_beside_it(task: CausalLM) -> None:
    found = gather(Refuses(task), task, [])
    wrapped: Any = found["unlearned"]
    assert isinstance(wrapped, Wrapped)
    assert wrapped.count_tokens("Where was she born?") == task.count_tokens("Where was she born?")
    assert wrapped.generate(["a"], [3]) == ["I cannot say."]
    assert wrapped.cost.forwards == 1
    assert isinstance(wrapped.copy(), Wrapped)


def test_a_wrapped_model_alone_must_count_tokens_itself(task: CausalLM) -> None:
    with pytest.raises(BadInput, match=r"offers no count_tokens.*add count_tokens"):
        gather(Refuses(task), None, [])


def test_what_a_wrapped_model_lacks_is_named(task: CausalLM) -> None:
    wrapped = Wrapped(Refuses(task), len)
    assert not hasattr(wrapped, "merge_lora")
    with pytest.raises(NotOffered, match="model Refuses: offers no gradient_norms"):
        wrapped.gradient_norms([("a", "b")])


def test_levels_are_those_that_somebody_stated(task: CausalLM, files: Any, tmp_path: Path) -> None:
    assert stated_level(Unlearned(task, "retrain", "exact")) == "exact"
    assert stated_level(task) == "unknown"
    assert stated_level(Refuses(task)) == "guard"
    assert stated_level(files.model) == "unknown"
    (tmp_path / "expunge.json").write_text(json.dumps({"removal_level": "approximate"}))
    assert stated_level(str(tmp_path)) == "approximate"


def test_a_run_folder_stands_for_the_model_in_it(tmp_path: Path) -> None:
    assert model_path(tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert model_path(str(tmp_path)) == tmp_path / "model"
    assert model_path("owner/name") == "owner/name"
