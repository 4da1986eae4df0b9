"""A model that remembers what it said says the same, and asks itself once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from expunge.benchmarks.tofu_cell import Remembering
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
    with pytest.raises(TypeError, match="frozen"):
        frozen.copy()
