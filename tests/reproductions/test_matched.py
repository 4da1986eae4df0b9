"""Comparing at equal forgetting: where a path crosses a level, and how seeds are compared."""

from __future__ import annotations

import pytest

from expunge.reproductions.matched import at_forgetting, compare
from expunge.training.probe import ProbePoint


def path(*points: tuple[float, float]) -> list[ProbePoint]:
    return [ProbePoint(k, forget_probability=f, retain_probability=r) for k, (f, r) in enumerate(points)]


def test_the_first_crossing_is_read_between_the_steps_around_it() -> None:
    points = path((0.9, 1.0), (0.5, 0.8), (0.1, 0.4), (0.4, 0.6), (0.1, 0.0))
    assert at_forgetting(points, 0.3) == pytest.approx(0.6), "halfway between 0.5 and 0.1"
    assert at_forgetting(points, 0.5) == pytest.approx(0.8), "a level that is met exactly is crossed in the next step"
    assert at_forgetting(points, 0.1) is None
    assert at_forgetting(path((0.05, 1.0), (0.04, 1.0)), 0.1) is None, "it was never known"


def test_a_path_without_numbers_has_no_crossing() -> None:
    assert at_forgetting([ProbePoint(0), ProbePoint(1)], 0.3) is None


def test_every_seed_must_agree() -> None:
    runs = [{"a": 0.5, "b": 0.4}, {"a": 0.6, "b": 0.4}, {"a": 0.4, "b": 0.1}]
    check = compare("a keeps more", runs, "a", "b", "luck")
    assert check.holds
    assert "difference +0.200 [-0.048, +0.448], above 0 in 3 of 3 seeds" in check.detail
    assert "luck" not in check.detail
    other = compare("b keeps more", runs, "b", "a", "luck")
    assert not other.holds
    assert other.detail.endswith("above 0 in 0 of 3 seeds; luck")


def test_a_seed_that_never_gets_there_is_no_evidence() -> None:
    check = compare("a keeps more", [{"a": 0.5, "b": 0.4}, {"b": 0.4}], "a", "b")
    assert not check.holds
    assert "1 of 2 seeds did not reach the level" in check.detail
