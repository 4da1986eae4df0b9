"""Small models from nothing: seeded, and able to learn by heart."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from expunge.requests.request import example_id
from expunge.training.from_scratch import Shape, small_llama, train_small_llama
from expunge.training.settings import TrainSettings

SHAPE = Shape(hidden=32, layers=1, heads=2, context=64)


def test_weights_follow_from_the_seed_alone(tiny_tokenizer: Any) -> None:
    torch.manual_seed(5)
    one = small_llama(tiny_tokenizer, SHAPE, 3)
    torch.manual_seed(6)
    same, other = small_llama(tiny_tokenizer, SHAPE, 3), small_llama(tiny_tokenizer, SHAPE, 4)
    for (name, a), (_, b) in zip(one.named_parameters(), same.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))


def test_it_learns_what_it_is_given(tiny_tokenizer: Any) -> None:
    rows = [{"prompt": f"Number {k}?", "answer": f"It is {k * k}."} for k in range(6)]
    given = Dataset.from_list([{**row, "id": example_id(row)} for row in rows])
    settings = TrainSettings(epochs=60, batch_size=6, learning_rate=1e-2, warmup=0.0, schedule="constant")
    model, result = train_small_llama([given], tiny_tokenizer, SHAPE, settings)
    assert result.steps == 60
    assert all(scores.nll < 0.5 for scores in model.score([(r["prompt"], r["answer"]) for r in rows]))
