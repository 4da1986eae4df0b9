from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from expunge.selections.base import top_share
from expunge.selections.saliency import Saliency, SaliencyConfig, loss_gradient


def plain_gradient(task: Any, rows: list[Any], total: int) -> dict[str, torch.Tensor]:
    """One example at a time through the library's own model."""
    task.model.zero_grad()
    for row in rows:
        encoded = task.encoder.encode([(row["prompt"], row["answer"])])
        tokens, start = torch.from_numpy(encoded.tokens[0])[None], encoded.starts[0]
        logits = task.model(input_ids=tokens).logits[0, start - 1 : -1]
        (F.cross_entropy(logits, tokens[0, start:], reduction="sum") / total).backward()
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.model.zero_grad()
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_gradient_is_that_of_the_mean_over_all_labelled_tokens(make_task: Any, request_: Any, family: str) -> None:
    task = make_task(family)
    task.model.eval()
    encoded = task.encode(request_.forget)
    total = sum(encoded.labelled(i) for i in range(len(encoded)))
    expected = plain_gradient(task, request_.forget.to_list(), total)
    found = loss_gradient(task, encoded, dict(task.named_parameters()), [[0, 3], [1], [5, 4, 2]])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


def test_parity_sums_the_means_of_batches(make_task: Any, request_: Any) -> None:
    task = make_task()
    task.model.eval()
    rows, encoded = request_.forget.to_list(), task.encode(request_.forget)
    expected: dict[str, torch.Tensor] = {}
    for batch in ([0, 1, 2, 3], [4, 5]):
        part = plain_gradient(task, [rows[i] for i in batch], sum(encoded.labelled(i) for i in batch))
        expected = {name: expected.get(name, torch.zeros_like(g)) + g for name, g in part.items()}
    mask = Saliency(SaliencyConfig(share=0.2, parity=True, parity_batch_size=4)).build(task, request_, 0)
    for name, part in top_share({n: g.abs() for n, g in expected.items()}, 0.2).items():
        # A gradient on the threshold may fall on either side by rounding.
        assert (part != mask[name]).float().mean() < 0.01


def test_the_model_is_left_as_it_was(make_task: Any, request_: Any) -> None:
    task = make_task()
    task.model.train()
    first = next(iter(task.model.parameters()))
    first.requires_grad_(False)
    before = {name: p.clone() for name, p in task.named_parameters()}
    mask = Saliency().build(task, request_, 0)
    assert task.model.training
    assert not first.requires_grad
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in task.named_parameters())
    assert sum(int(m.sum()) for m in mask.values() if m is not None) == round(
        0.5 * sum(p.numel() for p in before.values())
    )
