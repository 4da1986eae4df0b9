"""A tiny task and request for every selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset

from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM

MakeTask = Callable[..., CausalLM]


@pytest.fixture
def make_task(tiny_model: Any, tiny_tokenizer: Any) -> MakeTask:
    """``make_task("gpt2")``: a tiny model of a family with the tiny tokenizer."""
    return lambda family="llama", **options: CausalLM(tiny_model(family, vocab=384, **options)[0], tiny_tokenizer)


@pytest.fixture(scope="session")
def request_() -> DeletionRequest:
    def examples(count: int, offset: int) -> Dataset:
        rows = [
            {"prompt": f"Where was number {i} born?", "answer": f"In Velburg{' or Salt' * (i % 3)} {i}."}
            for i in range(offset, offset + count)
        ]
        return Dataset.from_list([{**row, "id": example_id(row)} for row in rows])

    return DeletionRequest(examples(6, 0), examples(12, 100), examples(4, 200))
