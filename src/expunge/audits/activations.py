"""What the layers of a model hold at the tokens of an answer: read out through the head, or as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from expunge.audits.examples import Pair
from expunge.tasks.blocks import decoder_blocks, final_norm
from expunge.tasks.encoding import Encoded, length_batches
from expunge.tasks.statistics import LOGIT_CHUNK

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM


def spread_layers(task: CausalLM, count: int) -> list[int]:
    """Return up to ``count`` layers, evenly spread, the last one among them."""
    depth = len(decoder_blocks(task.model))
    return sorted({round(k) for k in np.linspace(depth - 1, 0, min(count, depth))})


class LensHead:
    """The final norm and output head of a model, to read any layer with.

    Args:
        task: the model they are taken from; copies are made, so it can be let go.
    """

    def __init__(self, task: CausalLM):
        self._task, self._norm = task, final_norm(task.model)
        self._weights = task.head_weights()

    def read(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Read the next token off hidden states as if their layer were the last.

        Args:
            hidden: (R, width) outputs of a block.
            targets: (R,) the true next tokens.

        Returns:
            (R,) NLL of the targets in nats, and (R,) their ranks among all tokens, from 1.
        """
        nll, rank = [], []
        step = max(1, LOGIT_CHUNK // self._weights["weight"].shape[0])
        for start in range(0, len(hidden), step):
            some, wanted = hidden[start : start + step], targets[start : start + step]
            logits = self._task.head(self._norm(some), self._weights)
            nll.append(F.cross_entropy(logits, wanted, reduction="none"))
            rank.append(1 + (logits > logits.gather(-1, wanted[:, None])).sum(-1))
        return torch.cat(nll), torch.cat(rank)


def lens(
    task: CausalLM, pairs: Sequence[Pair], layers: Sequence[int], heads: Sequence[LensHead]
) -> NDArray[np.float64]:
    """Apply the logit lens to the answers of examples.

    Args:
        task: the model.
        pairs: (prompt, answer).
        layers: blocks to read.
        heads: what to read them with.

    Returns:
        (heads, layers, examples, 2): NLL in nats per token, and mean reciprocal rank of the answer's tokens.
    """
    encoded = task.encoder.encode(pairs)
    out = np.zeros((len(heads), len(layers), len(pairs), 2))
    for indices, part, states in _states(task, encoded, layers):
        targets = torch.cat([torch.from_numpy(t[s:]) for t, s in zip(part.tokens, part.starts, strict=True)])
        counts = [part.labelled(k) for k in range(len(part))]
        example = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(counts))
        for row, layer in enumerate(layers):
            for h, head in enumerate(heads):
                nll, rank = head.read(states[layer], targets.to(task.device))
                for column, values in enumerate((nll.double().cpu(), (1 / rank.double()).cpu())):
                    sums = torch.zeros(len(part), dtype=torch.float64).index_add(0, example, values)
                    out[h, row, indices, column] = sums.numpy() / np.array(counts)
    return out


@dataclass(frozen=True)
class AnswerStates:
    """What blocks give out at the tokens of answers.

    Attributes:
        states: (rows, layers, width) float32, at the token before each answer token.
        targets: (rows,) the answer token that comes next.
        example: (rows,) which example a row belongs to.
    """

    states: NDArray[np.float32]
    targets: NDArray[np.int64]
    example: NDArray[np.int64]


def answer_states(task: CausalLM, pairs: Sequence[Pair], layers: Sequence[int]) -> AnswerStates:
    """Return the states before every answer token of some examples, in the order of the examples."""
    encoded = task.encoder.encode(pairs)
    counts = np.array([encoded.labelled(i) for i in range(len(encoded))])
    starts = np.concatenate([[0], counts.cumsum()])
    width = task.model.get_input_embeddings().weight.shape[1]
    out = np.zeros((starts[-1], len(layers), width), dtype=np.float32)
    for indices, _, states in _states(task, encoded, layers):
        rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in indices])
        for column, layer in enumerate(layers):
            out[rows, column] = states[layer].float().cpu().numpy()
    targets = np.concatenate([t[s:] for t, s in zip(encoded.tokens, encoded.starts, strict=True)])
    return AnswerStates(out, targets, np.repeat(np.arange(len(pairs)), counts))


def _states(
    task: CausalLM, encoded: Encoded, layers: Sequence[int]
) -> Iterator[tuple[list[int], Encoded, dict[int, Tensor]]]:
    """Yield per batch the indices of its examples, these examples, and per layer (R, width) rows at their answers."""
    with task.asked():
        lengths = [encoded.length(i) for i in range(len(encoded))]
        for indices in length_batches(lengths, task.tokens_per_forward):
            part = encoded.take(indices)
            yield indices, part, task.hidden_states(part, layers)
