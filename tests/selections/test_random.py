from __future__ import annotations

from typing import Any

import torch

from expunge.selections.random import Random, RandomConfig


def test_the_seed_draws_the_share_that_was_asked_for(make_task: Any, request_: Any) -> None:
    task = make_task()
    first, again, other = (Random(RandomConfig(share=0.3)).build(task, request_, seed) for seed in (1, 1, 2))
    total = sum(p.numel() for _, p in task.named_parameters())
    assert sum(int(part.sum()) for part in first.values() if part is not None) == round(0.3 * total)
    assert all(torch.equal(first[n], again[n]) for n in first)  # type: ignore[arg-type]
    assert any(not torch.equal(first[n], other[n]) for n in first)  # type: ignore[arg-type]
