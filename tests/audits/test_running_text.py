from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.running_text import score_text, windows
from expunge.tasks.causal_lm import CausalLM


@given(length=st.integers(0, 200), window=st.integers(2, 40), data=st.data())
def test_every_token_is_scored_once_with_enough_before_it(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    cuts = windows(length, window, stride)
    assert [t for _, end, first in cuts for t in range(first, end)] == list(range(1, length))
    for begin, end, first in cuts:
        assert end - begin <= window
        assert first - begin >= min(first, window - stride)


def test_windows_by_hand() -> None:
    """10 tokens, windows of 4 that advance by 2: [0,4) scores 1-3, [2,6) scores 4-5, [4,8) 6-7, [6,10) 8-9."""
    assert windows(10, 4, 2) == [(0, 4, 1), (2, 6, 4), (4, 8, 6), (6, 10, 8)]


@pytest.mark.parametrize("bos", [False, True])
def test_scores_are_those_of_plain_windows(make_lm: Callable[..., CausalLM], bos: bool) -> None:
    lm, text = make_lm(0, bos=bos), "Mirela Ostrander was born in Velburg. She repairs clocks. " * 6
    found = score_text(lm, text, window=24, stride=10)
    tokens = torch.tensor(lm.tokenizer(text, add_special_tokens=False)["input_ids"])
    if lm.tokenizer.bos_token_id is not None:
        tokens = torch.cat([torch.tensor([lm.tokenizer.bos_token_id]), tokens])
    expected = []
    for begin, end, first in windows(len(tokens), 24, 10):
        with torch.no_grad():
            logs = lm.model(input_ids=tokens[None, begin:end]).logits[0].log_softmax(-1)
        expected += [float(logs[t - begin - 1, tokens[t]]) for t in range(first, end)]
    assert np.concatenate(found) == pytest.approx(expected, abs=1e-5)
    assert len(expected) == len(tokens) - 1
