"""Trees of token sequences: every sequence is a path, and nothing outside it is seen."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.tasks.shared_prefixes import Tree, grow, lay_out

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12)


def arrays(sequences: list[list[int]]) -> list[np.ndarray]:
    return [np.array(tokens, dtype=np.int64) for tokens in sequences]


def linear(tokens: int) -> float:
    return float(tokens)


@given(SEQUENCES)
def test_every_sequence_is_a_path_that_sees_itself_alone(sequences: list[list[int]]) -> None:
    trees = grow(arrays(sequences), linear, 100)
    assert sorted(i for tree in trees for i in tree.paths) == list(range(len(sequences)))
    for tree in trees:
        sees = tree.attends()
        for index, path in tree.paths.items():
            assert tree.tokens[path].tolist() == sequences[index]
            assert tree.positions[path].tolist() == list(range(len(path)))
            assert tree.parents[path].tolist() == [-1, *path[:-1].tolist()]
            for place, node in enumerate(path):
                assert np.flatnonzero(sees[node]).tolist() == sorted(path[: place + 1].tolist())


@given(SEQUENCES, st.integers(1, 30))
def test_trees_keep_their_bound_and_never_cost_more(sequences: list[list[int]], most: int) -> None:
    def square(tokens: int) -> float:
        return tokens + tokens**2 / 4

    trees = grow(arrays(sequences), square, most)
    assert all(len(tree) <= most for tree in trees if len(tree.paths) > 1)
    assert sum(square(len(tree)) for tree in trees) <= sum(square(len(tokens)) for tokens in sequences) + 1e-9


def test_what_is_shared_is_there_once() -> None:
    prompt = [7, 8, 9, 10]
    [tree] = grow(arrays([[*prompt, 1, 2], [*prompt, 1, 3], [*prompt, 4], [*prompt, 1, 2]]), linear, 100)
    assert len(tree) == len(prompt) + 4
    assert tree.paths[0].tolist() == tree.paths[3].tolist()


def test_sequences_without_a_common_beginning_stay_apart() -> None:
    assert [len(tree) for tree in grow(arrays([[1, 2, 3], [2, 2, 3], [3, 2, 3]]), linear, 100)] == [3, 3, 3]
    assert grow([], linear, 100) == []


def test_a_batch_reads_each_distinct_answer_token_once() -> None:
    first, second = grow(arrays([[5, 6, 1, 2], [5, 6, 1, 3], [4, 4]]), linear, 100)[::-1]
    tree, alone = (first, second) if len(first.paths) == 2 else (second, first)
    assert isinstance(tree, Tree)
    batch, answers = lay_out([tree, alone], [2, 2, 1], ["a", "b", "c"], 0, torch.float32, torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 1, 2, 3], [4, 4, 0, 0, 0]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3], [0, 1, 0, 0, 0]]
    # After 6 comes 1, after that 2 or 3; after 4 comes 4.
    assert batch.rows.tolist() == [1, 2, 2, 5]
    assert batch.targets.tolist() == [1, 2, 3, 4]
    assert {k: v.tolist() for k, v in answers.items()} == {0: [0, 1], 1: [0, 2], 2: [3]}
    assert batch.real_tokens == 7
    assert sorted(batch.ids) == ["a", "b", "c"]
    assert batch.attention_mask is not None
    hidden = batch.attention_mask[:, 0] < 0
    assert (~hidden[0]).int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 0, 1]
    ]  # fmt: skip
    assert torch.isfinite(batch.attention_mask).all()
