"""A model that remembers what it said says the same, and asks itself once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.runs.shelf import Remembering, Shelf
from expunge.tasks.causal_lm import CausalLM


def test_it_answers_as_before_and_runs_once(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    plain = CausalLM(tiny_model("llama", vocab=len(tiny_tokenizer))[0], tiny_tokenizer)
    pairs = [("Where?", "Here it is."), ("Who?", "Nobody."), ("Where?", "Here it is.")]
    frozen = Remembering(plain)
    expected = plain.score(pairs)
    first = frozen.score(pairs)
    forwards = frozen.cost.forwards
    again = frozen.score(pairs[::-1])
    assert frozen.cost.forwards == forwards
    for a, b, c in zip(expected, first, again[::-1], strict=True):
        assert np.allclose(a.log_prob, b.log_prob, atol=1e-6)
        assert np.array_equal(b.log_prob, c.log_prob)
    assert frozen.generate(["Where?", "Who?"], [4, 4]) == plain.generate(["Where?", "Who?"], [4, 4])


def test_a_copy_can_be_changed_and_remembers_nothing(tiny_model: Callable[..., Any], tiny_tokenizer: Any) -> None:
    frozen = Remembering(CausalLM(tiny_model("llama", vocab=len(tiny_tokenizer))[0], tiny_tokenizer))
    before = frozen.score([("Where?", "Here it is.")])[0].nll
    changed = frozen.copy()
    assert type(changed) is CausalLM
    for parameter in changed.model.parameters():
        parameter.data.mul_(0.5)
    assert changed.score([("Where?", "Here it is.")])[0].nll != pytest.approx(before)
    assert frozen.score([("Where?", "Here it is.")])[0].nll == before


def test_a_model_is_loaded_once(files: Any) -> None:
    shelf = Shelf()
    first = shelf.get(files.model, dtype="float32")
    assert isinstance(first, Remembering)
    assert shelf.get(str(files.model), dtype="float32") is first
    assert shelf.get(files.model, dtype="bfloat16") is not first
