"""Layers read through the head: the last block must give what the model itself gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from expunge.audits.activations import LensHead, answer_states, lens, spread_layers
from expunge.tasks.causal_lm import CausalLM

PAIRS = [("Where was Mirela born?", "in Velburg."), ("Why?", "no."), ("Who wrote it?", "Tomas Ilves of Velburg did.")]
FAMILIES = ("llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox")


@pytest.fixture(params=FAMILIES)
def task(request: pytest.FixtureRequest, tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model(request.param, vocab=384)[0], tiny_tokenizer)


def test_the_last_block_read_is_the_output(task: CausalLM) -> None:
    found = lens(task, PAIRS, [0, 1], [LensHead(task)])
    assert found.shape == (1, 2, 3, 2)
    scores = task.score(PAIRS)
    np.testing.assert_allclose(found[0, 1, :, 0], [s.nll for s in scores], atol=1e-4)
    assert not np.allclose(found[0, 0, :, 0], found[0, 1, :, 0], atol=1e-3)
    assert ((found[..., 1] > 0) & (found[..., 1] <= 1)).all()


def test_ranks_count_the_tokens_above(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    hidden, targets = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 9, 100, 383])
    with torch.no_grad():
        nll, rank = LensHead(task).read(hidden, targets)
        logits = task.model.lm_head(task.model.model.norm(hidden))
    order = logits.argsort(-1, descending=True)
    expected = [int((row == t).nonzero()[0, 0]) + 1 for row, t in zip(order, targets, strict=True)]
    assert rank.tolist() == expected
    torch.testing.assert_close(nll, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))


def test_states_are_those_before_each_answer_token(task: CausalLM) -> None:
    found = answer_states(task, PAIRS, [0, 1])
    encoded = task.encoder.encode(PAIRS)
    assert found.states.shape == (sum(encoded.labelled(i) for i in range(3)), 2, 32)
    start = 0
    for i, tokens in enumerate(encoded.tokens):
        n = encoded.labelled(i)
        with torch.no_grad():
            out = task.model(torch.from_numpy(tokens)[None], output_hidden_states=True).hidden_states[1][0]
        first = encoded.starts[i] - 1
        np.testing.assert_allclose(found.states[start : start + n, 0], out[first : first + n], atol=1e-4)
        assert found.targets[start : start + n].tolist() == tokens[encoded.starts[i] :].tolist()
        assert (found.example[start : start + n] == i).all()
        start += n


def test_layers_are_spread_and_end_with_the_last(tiny_model: Any, tiny_tokenizer: Any) -> None:
    deep = CausalLM(tiny_model("llama", vocab=384, layers=9)[0], tiny_tokenizer)
    assert spread_layers(deep, 20) == list(range(9))
    assert spread_layers(deep, 1) == [8]
    chosen = spread_layers(deep, 4)
    assert len(chosen) == 4
    assert chosen[-1] == 8
