from __future__ import annotations

from typing import Any

import pytest

from expunge.benchmarks.rwku_cell import own_answers, own_texts
from expunge.benchmarks.rwku_data import Probe, Target
from expunge.tasks.causal_lm import CausalLM


@pytest.fixture
def model(tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)


TARGET = Target("Mirela", "Mirela is a diver.", [Probe("Where was Mirela born?", "Salt", "question", "question")])


def test_the_forget_set_is_what_the_model_writes_itself(model: CausalLM) -> None:
    texts = own_texts(model, TARGET, 0, 6)
    assert texts.to_list() == own_texts(model, TARGET, 0, 6).to_list()
    assert all("Mirela" in row["prompt"] for row in texts)
    assert len({row["id"] for row in texts}) == len(texts)
    assert texts.to_list() != own_texts(model, TARGET, 1, 6).to_list()
    answers = own_answers(model, TARGET)
    assert [row["prompt"] for row in answers] == ["Where was Mirela born?"]
