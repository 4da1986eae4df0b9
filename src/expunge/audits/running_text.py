"""Scores running text in overlapping windows, each token once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from expunge.errors import BadInput, Problem
from expunge.tasks.encoding import Encoded

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM


def windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Cut a sequence into overlapping windows.

    Args:
        length: tokens of the sequence.
        window: tokens per window.
        stride: tokens by which windows advance, below ``window``, so that each token to score has one before it.

    Returns:
        Per window (first token, end, first token to score); together they score tokens 1 to ``length - 1`` once.
    """
    out, done = [], 1
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        if end > done:
            out.append((begin, end, done))
            done = end
    return out


def score_text(model: CausalLM, text: str, window: int, stride: int) -> list[NDArray[np.float64]]:
    """Return the log-probabilities of a text's tokens in nats, per window the tokens that no earlier one scored.

    Args:
        model: the model.
        text: any text.
        window: tokens per window, at least 2.
        stride: tokens by which windows advance, below ``window``: each token is scored with at least
            ``window - stride`` tokens before it where the text has them.

    Raises:
        BadInput: what the model reads before any text leaves no room for a window.
    """
    lead, room = model.encoder.lead, model.encoder.max_length
    if lead and room is not None:
        window = min(window, room - len(lead))
        stride = min(stride, window - 1)
        if stride < 1:
            what = f"of {len(lead)} tokens leaves no room for a text in {room}"
            raise BadInput(Problem("what the model reads before any text", what, "shorten it"))
    tokens = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    if model.tokenizer.bos_token_id is not None:
        tokens = [model.tokenizer.bos_token_id, *tokens]
    cuts = windows(len(tokens), window, stride)
    encoded = Encoded(
        [str(k) for k in range(len(cuts))],
        [np.asarray(lead + tokens[begin:end], dtype=np.int64) for begin, end, _ in cuts],
        [len(lead) + first - begin for begin, _, first in cuts],
    )
    rows = max(1, model.tokens_per_forward // (window + len(lead)))
    out: list[NDArray[np.float64]] = []
    with model.asked():
        for start in range(0, len(cuts), rows):
            statistics = model.statistics(encoded.take(range(start, min(start + rows, len(cuts)))))
            out += [-part.double().cpu().numpy() for part in statistics.nll.split(statistics.counts.tolist())]
    return out
