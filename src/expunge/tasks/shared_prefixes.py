"""Sequences that begin alike, laid out so that what they share goes through the model once.

The answers that audits score are mostly one prompt with several answers, which differ in a word or two. Such sequences
form a tree of tokens. A tree is one row of a batch: every token has the position that it has in its sequences, and
attends to its ancestors alone. The numbers are those of separate sequences; the work is that of the distinct tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from expunge.tasks.encoding import Batch

# A sequence joins a tree if what it adds costs at most this part of what it costs alone.
WORTH = 0.8

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """Sequences with a common beginning, as one row.

    Attributes:
        tokens: (N,) token ids, each before what follows it.
        parents: (N,) index of the token before it, -1 for the first.
        positions: (N,) its position in the sequences it is part of.
        paths: index of a sequence -> (T,) where its tokens are.
    """

    tokens: Tokens
    parents: Tokens
    positions: Tokens
    paths: dict[int, Tokens]

    def __len__(self) -> int:
        return len(self.tokens)

    def attends(self) -> NDArray[np.bool_]:
        """Return (N, N): whether the token of the row sees the token of the column, which is itself or an ancestor."""
        seen = np.eye(len(self), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def grow(sequences: Sequence[Tokens], cost: Callable[[int], float], most: int) -> list[Tree]:
    """Join sequences that begin alike into trees; one that is like no other is a tree of its own.

    Args:
        sequences: token ids, at least one each.
        cost: what a row of so many tokens costs. Attention makes it grow faster than the row.
        most: tokens that a tree of several sequences may have.

    Returns:
        Trees in which every sequence is once, those of similar tokens together.
    """
    trees: list[Tree] = []
    if not len(sequences):
        return trees
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].tolist())
    shared = [0, *(_common(sequences[a], sequences[b]) for a, b in pairwise(order))]
    group: list[tuple[int, int]] = []
    size = 0
    for index, common in zip(order, shared, strict=True):
        length = len(sequences[index])
        joined = size + length - common
        if group and joined <= most and cost(joined) - cost(size) <= WORTH * cost(length):
            group.append((index, common))
            size = joined
        else:
            if group:
                trees.append(_tree(sequences, group))
            group, size = [(index, 0)], length
    return [*trees, _tree(sequences, group)]


def _common(one: Tokens, other: Tokens) -> int:
    shorter = min(len(one), len(other))
    differs = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(differs[0]) if len(differs) else shorter


def _tree(sequences: Sequence[Tokens], group: Sequence[tuple[int, int]]) -> Tree:
    """Sorted, a sequence shares with all before it no more than with its neighbour: each adds the end of a path."""
    tokens: list[Tokens] = []
    parents: list[Tokens] = []
    positions: list[Tokens] = []
    paths: dict[int, Tokens] = {}
    path, size = np.empty(0, dtype=np.int64), 0
    for index, common in group:
        rest = sequences[index][common:]
        new = np.arange(size, size + len(rest))
        path = np.concatenate([path[:common], new])
        tokens.append(rest)
        positions.append(np.arange(common, common + len(rest)))
        parents.append(np.concatenate([[-1], path])[common : common + len(rest)])
        paths[index] = path
        size += len(rest)
    return Tree(np.concatenate(tokens), np.concatenate(parents), np.concatenate(positions), paths)


def lay_out(
    trees: Sequence[Tree],
    starts: Sequence[int],
    ids: Sequence[str],
    pad_id: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Batch, dict[int, Tokens]]:
    """Lay trees out as one batch, right-padded to the largest.

    Args:
        trees: at least one.
        starts, ids: per sequence, by its index, where its answer begins, at least 1, and its name.
        pad_id: token to fill with.
        dtype: precision of the model's attention.
        device: where the tensors go.

    Returns:
        A batch of which one row is read per distinct answer token, with an attention mask of (B, 1, N, N), 0 or the
        least number of its precision; and index of a sequence -> (A,) which of the rows are the tokens of its answer.
    """
    width = max(len(tree) for tree in trees)
    grid = np.full((len(trees), width), pad_id, dtype=np.int64)
    positions = np.zeros((len(trees), width), dtype=np.int64)
    sees = np.zeros((len(trees), 1, width, width), dtype=bool)
    sees[:, 0, np.arange(width), np.arange(width)] = True  # a row of padding must see something
    rows: list[Tokens] = []
    targets: list[Tokens] = []
    answers: dict[int, Tokens] = {}
    read = 0
    for b, tree in enumerate(trees):
        grid[b, : len(tree)], positions[b, : len(tree)] = tree.tokens, tree.positions
        sees[b, 0, : len(tree), : len(tree)] = tree.attends()
        ends = {index: path[starts[index] :] for index, path in tree.paths.items()}
        nodes = np.unique(np.concatenate(list(ends.values())))
        rows.append(b * width + tree.parents[nodes])
        targets.append(tree.tokens[nodes])
        answers.update({index: read + np.searchsorted(nodes, end) for index, end in ends.items()})
        read += len(nodes)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(torch.from_numpy(~sees), torch.finfo(dtype).min)
    counts = np.array([len(part) for part in rows])
    batch = Batch(
        input_ids=torch.from_numpy(grid).to(device),
        attention_mask=mask.to(device),
        rows=torch.from_numpy(np.concatenate(rows)).to(device),
        targets=torch.from_numpy(np.concatenate(targets)).to(device),
        example=torch.from_numpy(np.repeat(np.arange(len(trees)), counts)).to(device),
        counts=torch.from_numpy(counts).to(device),
        ids=[ids[index] for tree in trees for index in tree.paths],
        real_tokens=sum(len(tree) for tree in trees),
        position_ids=torch.from_numpy(positions).to(device),
    )
    return batch, answers
