from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from expunge.tasks.blocks import decoder_blocks
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.tasks.intervene import added_to_output, embedding_table, embeddings_at, insert_tokens

PAIRS = [("Where was Mirela Ostrander born?", "in Velburg"), ("Who wrote The Salt Harbour?", "Tomas")]


@pytest.fixture
def lm(every_tiny_model: tuple, tiny_tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return CausalLM(every_tiny_model[0], tiny_tokenizer)


def logits(lm: CausalLM) -> torch.Tensor:
    return lm.statistics(lm.encoder.encode(PAIRS)).logits


def hooks(lm: CausalLM) -> int:
    return sum(len(m._forward_hooks) for m in lm.model.modules())


def test_adding_nothing_changes_no_bit(lm: CausalLM) -> None:
    before = logits(lm)
    with added_to_output(decoder_blocks(lm.model)[0], torch.zeros(32)):
        assert torch.equal(logits(lm), before)
    with added_to_output(decoder_blocks(lm.model)[0], torch.ones(32)):
        assert not torch.equal(logits(lm), before)
    assert torch.equal(logits(lm), before)
    assert not hooks(lm)


def test_what_is_added_is_what_the_next_block_gets(lm: CausalLM) -> None:
    encoded, vector = lm.encoder.encode(PAIRS), torch.linspace(-1, 1, 32)
    before = lm.hidden_states(encoded, [0])[0]
    with added_to_output(decoder_blocks(lm.model)[0], vector):
        # The hook of whoever reads comes after this one.
        after = lm.hidden_states(encoded, [0])[0]
    assert torch.allclose(after, before + vector, atol=1e-6)


def test_hooks_go_also_after_an_error(lm: CausalLM) -> None:
    with pytest.raises(RuntimeError), added_to_output(decoder_blocks(lm.model)[0], torch.ones(7)):
        logits(lm)
    assert not hooks(lm)


def test_placing_the_embeddings_of_tokens_is_having_the_tokens(lm: CausalLM) -> None:
    """Placeholders with the vectors of other tokens give the logits of those tokens, bit for bit."""
    encoded, tokens = lm.encoder.encode(PAIRS), [17, 5, 30]
    at = [0, 2]
    wanted = lm.statistics(insert_tokens(encoded, at, tokens)).logits
    table = embedding_table(lm.model)
    with embeddings_at(lm.model, torch.tensor(at), table[tokens]):
        got = lm.statistics(insert_tokens(encoded, at, [0, 0, 0])).logits
    assert torch.equal(got, wanted)
    each = torch.stack([table[[1, 2, 3]], table[tokens]])
    with embeddings_at(lm.model, torch.tensor(at), each):
        got = lm.statistics(insert_tokens(encoded, at, [0, 0, 0])).logits
    rows = lm.encoder.encode(PAIRS).labelled(0)
    assert torch.equal(got[rows:], wanted[rows:])
    assert not torch.equal(got[:rows], wanted[:rows])


def test_gradients_reach_the_vectors(lm: CausalLM) -> None:
    vectors = torch.zeros(2, 32, requires_grad=True)
    encoded = insert_tokens(lm.encoder.encode(PAIRS), [0, 0], [0, 0])
    with embeddings_at(lm.model, torch.tensor([0, 0]), vectors):
        lm.statistics(encoded).nll.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    lm.model.zero_grad()


def test_inserted_by_hand() -> None:
    encoded = Encoded(["a", "b"], [np.array([1, 2, 3]), np.array([4, 5])], [2, 1])
    longer = insert_tokens(encoded, [2, 0], [8, 9])
    assert [row.tolist() for row in longer.tokens] == [[1, 2, 8, 9, 3], [8, 9, 4, 5]]
    assert longer.starts == [4, 3]
    assert [longer.labelled(k) for k in (0, 1)] == [encoded.labelled(k) for k in (0, 1)]


def test_scores_of_a_batch_know_their_examples(lm: CausalLM) -> None:
    """A shift for the second example alone leaves the first as it was, whatever the order of the batch."""
    encoded = lm.encoder.encode(PAIRS)
    block, shift = decoder_blocks(lm.model)[0], torch.tensor([[0.0], [3.0]]) * torch.linspace(-1, 1, 32)
    plain = lm.score(PAIRS)
    moved = lm.score_encoded(encoded, ["", ""], lambda indices: added_to_output(block, shift[list(indices)][:, None]))
    assert moved[0].nll == plain[0].nll
    assert moved[1].nll != plain[1].nll
