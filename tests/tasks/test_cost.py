"""The account of what was spent."""

from __future__ import annotations

import pytest

from expunge.tasks.cost import Cost, peak_memory


def test_accounts_add_up_and_come_apart() -> None:
    one = Cost(forwards=2, backwards=1, tokens=10, padded_tokens=12, flops=5.0, seconds=1.0, peak_bytes=7)
    other = Cost(forwards=3, decode_steps=4, sequences=2, flops=2.0, peak_bytes=9)
    both = one + other
    assert (both.forwards, both.decode_steps, both.tokens, both.flops) == (5, 4, 10, 7.0)
    assert both.peak_bytes == 9, "a peak is a maximum, not a sum"
    assert (both - other).to_dict() == {**one.to_dict(), "peak_bytes": 9}


def test_a_snapshot_stays_as_it_was() -> None:
    cost = Cost(forwards=1)
    before = cost.snapshot()
    cost.forwards += 1
    assert (cost - before).forwards == 1


def test_time_and_memory_are_taken_also_after_an_error() -> None:
    cost = Cost()
    with pytest.raises(RuntimeError), cost.measured():
        raise RuntimeError
    assert cost.seconds > 0
    assert cost.peak_bytes > 1 << 20
    assert peak_memory() >= cost.peak_bytes
