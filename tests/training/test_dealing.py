"""What goes through which forward: nothing twice, nothing left out, streams together where that is allowed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.tasks.encoding import Encoded
from expunge.training.dealing import Dealer
from expunge.training.objective import MovingWeight, Objective, Term, negative_nll, nll
from expunge.training.plan import Plan
from expunge.training.settings import TrainSettings

FORGET = Term("f", ("forget",), negative_nll, "token_mean")
RETAIN = Term("r", ("retain",), nll, "token_mean")
COUPLED = Term("gap", ("forget", "retain"), lambda f, r: r.mean_nll - f.mean_nll, "example_mean")
BOTH = ("forget", "retain")


class Kept(MovingWeight):
    """A weight that moves after every micro-batch."""

    def update(self, value: float, epoch: int) -> None:
        """Stay."""


def encoded(lengths: list[int], name: str) -> Encoded:
    rows = [np.zeros(n, np.int64) for n in lengths]
    return Encoded([f"{name}{i}" for i in range(len(lengths))], rows, [1] * len(lengths))


def dealt(
    terms: tuple[Term, ...], lengths: list[int], device: str = "cpu", call: int = 8, mixes: bool = False, **how: Any
) -> tuple[Dealer, Plan]:
    task: Any = SimpleNamespace(device=torch.device(device), mixes_examples=mixes, tokens_per_call=call)
    streams: Any = {"forget": encoded(lengths, "f"), "retain": encoded(lengths[::-1], "r")}
    settings = TrainSettings(batch_size=4, epochs=1, **how)
    objective = Objective(terms)
    dealer = Dealer(task, objective, {s: streams[s] for s in objective.streams()}, settings, 0, 1)
    return dealer, Plan(streams, "forget", batch_size=4, epochs=1, max_steps=None, seed=0)


def groups(dealer: Dealer) -> list[tuple[str, ...]]:
    return [group for group, _ in dealer.components[0]]


@given(st.lists(st.integers(2, 90), min_size=1, max_size=12), st.integers(1, 100))
def test_every_example_of_a_step_is_dealt_once(lengths: list[int], call: int) -> None:
    for terms, how in (((FORGET, RETAIN), {}), ((COUPLED,), {}), ((FORGET, RETAIN), {"share_forward": "always"})):
        dealer, plan = dealt(terms, lengths, call=call, **how)
        for number in range(plan.total):
            step = plan.step(number)
            for group, _ in dealer.components[0]:
                batches = dealer.deal(step, group)
                for stream in group:
                    positions = [p for batch in batches for p in batch[stream]]
                    assert sorted(positions) == list(range(len(step.examples[stream])))
                assert all(sum(map(len, batch.values())) <= 4 * len(group) for batch in batches)


def test_on_a_cpu_streams_are_sorted_by_length_together() -> None:
    dealer, plan = dealt((FORGET, RETAIN), [80, 80, 10, 10], call=1)
    assert groups(dealer) == [BOTH]
    step = plan.step(0)
    assert dealer.joins(step, BOTH)
    for batch in dealer.deal(step, BOTH):
        assert len({dealer.streams[s].length(step.examples[s][p]) for s, chosen in batch.items() for p in chosen}) == 1


@pytest.mark.parametrize(
    ("terms", "how"),
    [
        ((FORGET, RETAIN), {"share_forward": "never"}),
        ((FORGET, RETAIN), {"mixes": True}),
        ((FORGET, RETAIN), {"micro_batch_size": 2}),
        ((FORGET, Term("r", ("retain",), nll, "row_mean", positions="attended")), {}),
        ((FORGET, Term("r", ("retain",), nll, "token_mean", hidden=True)), {}),
        ((FORGET, Term("r", ("retain",), nll, "example_mean", blocks=(0,))), {}),
        ((FORGET, Term("r", ("retain",), nll, "token_mean", Kept(1.0, per="micro_batch"))), {}),
    ],
)
def test_on_a_cpu_streams_stay_apart_where_it_could_matter(terms: Any, how: dict[str, Any]) -> None:
    assert groups(dealt(terms, [9] * 4, **how)[0]) == [("forget",), ("retain",)]


def test_on_a_gpu_streams_share_a_forward_unless_examples_would_mix() -> None:
    dealer, plan = dealt((FORGET, RETAIN), [9] * 4, device="meta")
    assert groups(dealer) == [BOTH]
    (batch,) = dealer.deal(plan.step(0), BOTH)
    assert all(list(batch[stream]) == [0, 1, 2, 3] for stream in BOTH)
    assert groups(dealt((FORGET, RETAIN), [9] * 4, device="meta", mixes=True)[0]) == [("forget",), ("retain",)]


def test_what_a_run_will_see_is_all_that_its_steps_deal() -> None:
    dealer, plan = dealt((FORGET, RETAIN), [5, 9, 20, 7, 33, 4])
    seen: dict[str, set[int]] = {"forget": set(), "retain": set()}
    for number in range(plan.total):
        for stream, chosen in plan.step(number).examples.items():
            seen[stream].update(chosen)
    assert {s: set(indices) for s, indices in dealer.used(plan).items()} == seen
