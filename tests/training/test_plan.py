"""Which examples meet when: laws that hold whatever the data, its order and the number of processes."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.tasks.encoding import Encoded
from expunge.training.plan import (
    Plan,
    draw,
    epoch_batches,
    learning_rate_factor,
    micro_batches,
    own_alternatives,
    partners,
)


def encoded(lengths: list[int], name: str = "f") -> Encoded:
    return Encoded(
        [f"{name}{i}" for i in range(len(lengths))], [np.zeros(n, np.int64) for n in lengths], [1] * len(lengths)
    )


LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=60)


@given(lengths=LENGTHS, batch=st.integers(1, 9), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_example_comes_exactly_once_per_epoch(lengths: list[int], batch: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(encoded(lengths), batch, seed, epoch)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(1 <= len(b) <= batch for b in batches)
    assert len(batches) == -(-len(lengths) // batch)


@given(lengths=LENGTHS, batch=st.integers(1, 9), seed=st.integers(0, 5), shuffle=st.randoms())
def test_the_order_of_the_files_changes_nothing(
    lengths: list[int], batch: int, seed: int, shuffle: random.Random
) -> None:
    forget, retain = encoded(lengths), encoded([5] * 17, "r")

    def named(forget: Encoded, retain: Encoded) -> list[list[tuple[str, str]]]:
        plan = Plan(
            {"forget": forget, "retain": retain}, "forget", batch_size=batch, epochs=2, max_steps=None, seed=seed
        )
        steps = [plan.step(number).examples for number in range(plan.total)]
        return [[(forget.ids[f], retain.ids[r]) for f, r in zip(s["forget"], s["retain"], strict=True)] for s in steps]

    first = named(forget, retain)
    one, other = list(range(len(forget))), list(range(len(retain)))
    shuffle.shuffle(one)
    shuffle.shuffle(other)
    assert named(forget.take(one), retain.take(other)) == first


def test_partners_follow_from_seed_epoch_and_id_alone() -> None:
    anchor, ranked = encoded([3] * 40), list(range(50))
    everyone = list(range(40))
    drawn = partners(anchor, everyone, ranked, 0, 0)
    assert partners(anchor, everyone[::-1], ranked, 0, 0) == drawn[::-1], "company and position do not matter"
    assert [partners(anchor, [i], ranked, 0, 0)[0] for i in everyone] == drawn
    assert partners(anchor, everyone, ranked, 0, 1) != drawn
    assert partners(anchor, everyone, ranked, 1, 0) != drawn


def test_partners_are_uniform_with_replacement() -> None:
    counts = Counter(partners(encoded([3] * 6000), range(6000), range(6), 0, 0))
    # Binomial(6000, 1/6): mean 1000, standard deviation 29.
    assert all(abs(counts[i] - 1000) < 120 for i in range(6))


def test_every_example_meets_one_of_its_own_alternatives() -> None:
    anchor = encoded([3] * 10)
    names = [f"{identity}#{k}" for identity in anchor.ids for k in range(3)]
    others = encoded([3] * 30)
    pool = Encoded(names[::-1], others.tokens, others.starts)
    plan = Plan({"forget": anchor, "alternative": pool}, "forget", batch_size=4, epochs=6, max_steps=None, seed=0)
    met: set[str] = set()
    for number in range(plan.total):
        step = plan.step(number).examples
        for mine, other in zip(step["forget"], step["alternative"], strict=True):
            assert pool.ids[other].startswith(f"{anchor.ids[mine]}#")
            met.add(pool.ids[other])
    assert len(met) > 20, "each epoch draws anew"


def test_an_example_without_an_alternative_is_named() -> None:
    anchor, pool = encoded([3, 3]), encoded([3])
    with pytest.raises(BadInput, match="1 example"):
        own_alternatives(anchor, Encoded([f"{anchor.ids[0]}#0"], pool.tokens, pool.starts))


def test_epochs_differ_and_steps_can_be_asked_in_any_order() -> None:
    streams = {"forget": encoded(list(range(2, 22)))}
    plan = Plan(streams, "forget", batch_size=4, epochs=3, max_steps=None, seed=0)
    assert (plan.steps_per_epoch, plan.total) == (5, 15)
    forward = [plan.step(n).examples["forget"] for n in range(15)]
    again = Plan(streams, "forget", batch_size=4, epochs=3, max_steps=None, seed=0)
    assert [again.step(n).examples["forget"] for n in reversed(range(15))][::-1] == forward
    assert forward[:5] != forward[5:10]
    assert [plan.step(n).epoch for n in (0, 4, 5, 14)] == [0, 0, 1, 2]
    assert Plan(streams, "forget", batch_size=4, epochs=3, max_steps=7, seed=0).total == 7


@pytest.mark.parametrize("count", [12, 16, 40, 64, 100])
def test_small_sets_meet_in_new_batches_every_epoch(count: int) -> None:
    small = encoded([5 + i % 7 for i in range(count)])
    epochs = [{frozenset(b) for b in epoch_batches(small, 8, 0, epoch)} for epoch in range(4)]
    assert len(set().union(*epochs)) == sum(map(len, epochs))


def test_batches_hold_similar_lengths() -> None:
    lengths = [random.Random(0).randrange(5, 100) for _ in range(256)]
    batches = epoch_batches(encoded(lengths), 8, 0, 0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.15 * sum(lengths)


@given(lengths=LENGTHS, world=st.integers(1, 5), size=st.one_of(st.none(), st.integers(1, 7)))
def test_a_step_is_dealt_out_whole_and_evenly(lengths: list[int], world: int, size: int | None) -> None:
    shares = [micro_batches(lengths, rank, world, size) for rank in range(world)]
    assert sorted(i for share in shares for part in share for i in part) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1, "collective calls must match"
    assert all(len(part) <= (size or len(lengths)) for share in shares for part in share)
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_draws_depend_on_every_part_of_the_key() -> None:
    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw("1a"), draw(1, "b"), draw(2, "a"), draw("a", 1)}) == 5
    assert 0 <= draw() < 2**64


# ---- learning rate ---------------------------------------------------------------------------------------------


def test_learning_rates_by_hand() -> None:
    def linear(step: int) -> float:
        return learning_rate_factor(step, 10, 4, "linear")

    assert [linear(s) for s in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert [linear(s) for s in (7, 9)] == pytest.approx([0.5, 1 / 6])
    assert learning_rate_factor(7, 10, 4, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(4, 10, 4, "cosine") == 1.0
    assert [learning_rate_factor(s, 10, 2, "constant") for s in (0, 2, 9)] == pytest.approx([1 / 3, 1, 1])


@given(
    total=st.integers(1, 200), warmup=st.integers(0, 100), schedule=st.sampled_from(["linear", "cosine", "constant"])
)
def test_learning_rates_rise_then_never_rise_and_never_vanish(total: int, warmup: int, schedule: str) -> None:
    warmup = min(warmup, total // 2)
    factors = [learning_rate_factor(step, total, warmup, schedule) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[warmup] == 1.0
