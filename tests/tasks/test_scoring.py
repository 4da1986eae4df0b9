"""Answers scored as trees of what they share, against answers scored one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.scoring import score_each, trees_of

TOWNS = ("Velburg", "Salt Harbour", "Velmont", "Harrow Bay")
PAIRS = [
    *(("Where was Mirela Ostrander born?", f"Mirela Ostrander was born in {town}.") for town in TOWNS),
    *(("Where was Mirela Ostrander trained?", f"She was trained in {town}.") for town in TOWNS),
    ("", "In 1967, Tomas moved from Velburg to Harrow Bay; he never returned."),
]
COLUMNS = ("log_prob", "mean_log_prob", "var_log_prob", "hit")


def sharpen(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)


def test_shared_beginnings_change_no_score(every_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model, _ = every_tiny_model
    sharpen(model)
    task = CausalLM(model, tiny_tokenizer)
    together = task.score(PAIRS)
    if window := getattr(model.config, "sliding_window", None):  # Gemma's is shorter here than a sequence
        assert (window, task.takes_trees) == (8, None)
        return
    assert task.takes_trees, "every other family here reads positions and a mask of its own"
    tokens = task.cost.padded_tokens
    encoded, texts = task.encoder.encode(PAIRS), [answer for _, answer in PAIRS]
    with task.asked():
        apart = score_each(task, encoded, texts, None)
    for one, other in zip(together, apart, strict=True):
        assert (one.text, one.ends_with_eos, len(one)) == (other.text, other.ends_with_eos, len(other))
        for column in COLUMNS:
            np.testing.assert_allclose(getattr(one, column), getattr(other, column), rtol=2e-3, atol=2e-3)
    before = task.cost.padded_tokens
    task.score(PAIRS)
    assert task.cost.padded_tokens - before < 0.75 * (before - tokens)


def test_a_window_shorter_than_a_sequence_is_not_a_tree(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    encoded = task.encoder.encode(PAIRS)
    with task.asked():
        assert trees_of(task, encoded) is not None
        task.model.config.sliding_window = 4
        assert trees_of(task, encoded) is None
        task.model.config.sliding_window = 4000
        assert trees_of(task, encoded) is not None


@pytest.mark.parametrize("fault", ["positions", "mask", "refuses"])
def test_a_model_that_reads_them_otherwise_is_scored_one_by_one(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    model = tiny_model("llama", vocab=384)[0]
    sharpen(model)
    task = CausalLM(model, tiny_tokenizer)
    plain = CausalLM(model, tiny_tokenizer)
    plain.takes_trees = False
    expected = plain.score(PAIRS)
    forward = type(model).forward

    def faulty(self: Any, *, position_ids: Any = None, attention_mask: Any = None, **other: Any) -> Any:
        if position_ids is not None and fault == "refuses":
            raise ValueError("this model makes its own positions")
        if fault == "positions":
            position_ids = None
        if fault == "mask":
            attention_mask = None
        return forward(self, position_ids=position_ids, attention_mask=attention_mask, **other)

    monkeypatch.setattr(type(model), "forward", faulty)
    found = task.score(PAIRS)
    assert task.takes_trees is False
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-5)


def test_sequences_that_share_little_are_not_trees(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    encoded = task.encoder.encode([("Who?", "Tomas Ilves."), ("Where is it?", "In Velburg."), ("", "One more text.")])
    assert trees_of(task, encoded) is None
    assert task.takes_trees is None
