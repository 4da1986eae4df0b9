"""Interventions in a forward pass: vectors added to what a block gives out, vectors put in the place of embeddings.

Both are context managers around any call of the model, leave it as it was, and let gradients flow to the vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.tasks.encoding import Encoded


def insert_tokens(encoded: Encoded, at: Sequence[int], tokens: Sequence[int]) -> Encoded:
    """Put the same tokens into every example.

    Args:
        encoded: the examples.
        at: per example, the index of the token before which they go; not behind the start of its answer.
        tokens: what is put in.

    Returns:
        The longer examples; their answers are as before.
    """
    extra = np.asarray(tokens, dtype=np.int64)
    longer = [np.concatenate([row[:k], extra, row[k:]]) for row, k in zip(encoded.tokens, at, strict=True)]
    return Encoded(encoded.ids, longer, [start + len(extra) for start in encoded.starts])


@contextmanager
def added_to_output(module: nn.Module, vectors: Tensor) -> Iterator[None]:
    """Add to the hidden states that a module gives out.

    Args:
        module: a decoder block.
        vectors: anything that broadcasts with its (B, T, H) output.
    """

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vectors.to(output[0].dtype), *output[1:])
        return output + vectors.to(output.dtype)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def embeddings_at(model: Any, at: Tensor, vectors: Tensor) -> Iterator[None]:
    """Put vectors in the place of the token embeddings of some positions.

    Args:
        model: a transformers model, or several that predict as one: every one of its width reads the vectors.
        at: (B,) first of the positions in each row.
        vectors: (m, H) for the m positions of every row, or (B, m, H).
    """
    count = vectors.shape[-2]
    places = at[:, None] + torch.arange(count, device=at.device)

    def put(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        rows = torch.arange(output.shape[0], device=output.device)[:, None]
        return output.index_put((rows, places), vectors.to(output.dtype).expand(output.shape[0], count, -1))

    together = model.members() if hasattr(model, "members") else [model]
    tables = [one.get_input_embeddings() for one in together]
    handles = [t.register_forward_hook(put) for t in tables if t.weight.shape[1] == vectors.shape[-1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def embedding_table(model: Any) -> Tensor:
    """Return the (V, H) vectors that the model's own embedding gives its tokens, scaling included; no gradients."""
    table = model.get_input_embeddings()
    with torch.no_grad():
        found: Tensor = table(torch.arange(table.weight.shape[0], device=table.weight.device))
    return found
