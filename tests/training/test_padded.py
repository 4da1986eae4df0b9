"""Objectives on padded tensors: which rows are read, how they are reduced, and what is missing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.training.objective import Objective, Term, negative_nll, nll
from expunge.training.padded import Padded, objective_value


def test_rows_of_each_kind() -> None:
    labels = torch.tensor([[1, 2, -100], [-100, -100, 3]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    logits = torch.arange(2 * 3 * 4, dtype=torch.bfloat16).reshape(2, 3, 4)
    batch = Padded(logits, labels, attention_mask=mask, blocks={3: logits})
    found: dict[str, Any] = {p: batch.statistics(p) for p in ("answer", "label", "attended", "all")}  # type: ignore[arg-type]
    where = {"answer": [0, 4], "label": [0, 1, 5], "attended": [0, 1, 3, 4, 5], "all": [0, 1, 2, 3, 4, 5]}
    for positions, rows in where.items():
        stats = found[positions]
        assert stats.logits.dtype == torch.float32
        assert torch.equal(stats.logits, logits.float().reshape(6, 4)[rows])
        assert torch.equal(stats.blocks[3], logits.reshape(6, 4)[rows])
        assert stats.example.tolist() == [row // 3 for row in rows]
    assert found["all"].targets.tolist() == [2, -100, -100, -100, 3, -100]
    # A label that nothing predicts is counted by those alone that read the labels' own rows.
    assert found["answer"].counts.tolist() == [1, 1]
    assert found["label"].counts.tolist() == [2, 1]


def test_terms_are_reduced_as_they_say() -> None:
    # Two tokens of which the model gives 1/2 and 1/4 in the first example, one of 1/8 in the second.
    probabilities = torch.tensor([[[0.5, 0.5], [0.75, 0.25]], [[0.125, 0.875], [0.5, 0.5]]], dtype=torch.float64)
    logits = torch.cat([probabilities.log(), torch.zeros(2, 1, 2).double()], dim=1)
    labels = torch.tensor([[-100, 0, 1], [-100, 0, -100]])
    terms = (
        Term("tokens", ("forget",), negative_nll, "token_mean", 3.0),
        Term("sums", ("forget",), nll, "sequence_sum", 2.0),
        Term("off", ("retain",), nll, "token_mean", 0.0),
    )
    logits.requires_grad_()
    value = objective_value(Objective(terms), {"forget": Padded(logits, labels)})
    bits = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(value, (-3 * 6 / 3 + 2 * 6 / 2) * bits)
    (gradient,) = torch.autograd.grad(value, logits)
    # d/dz of a row is (2 * 1/2 - 3 * 1/3) (p - onehot) = 0 here: each row counts once in both.
    assert gradient.abs().max() < 1e-12


def test_rows_that_another_term_asked_for_are_not_counted() -> None:
    logits = torch.zeros(2, 4, 3, dtype=torch.float64)
    labels = torch.tensor([[-100, 0, 1, -100], [-100, -100, 2, -100]])
    answers = Term("answers", ("retain",), nll, "row_mean")
    prompts = Term("prompts", ("retain",), lambda s: torch.zeros(len(s.targets)), "row_mean", positions="all")
    value = objective_value(Objective((answers, prompts), anchor="retain"), {"retain": Padded(logits, labels)})
    assert value.item() == pytest.approx(math.log(3))


def test_a_stream_that_is_missing_is_named() -> None:
    objective = Objective((Term("a", ("forget",), nll, "token_mean"), Term("b", ("retain",), nll, "token_mean")))
    batch: Any = {"forget": Padded(torch.zeros(1, 2, 3), torch.tensor([[-100, 1]]))}
    with pytest.raises(BadInput, match="retain stream"):
        objective_value(objective, batch)
