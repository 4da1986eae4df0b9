from __future__ import annotations

from dataclasses import replace

import pytest

from expunge.verdict.calibration import World, error_rates, pairs_table, simulate, table

RUNS = 200


def rate(verdicts, result):
    return {row["result"]: row["rate"] for row in error_rates(verdicts)}[result]


WORLDS = {
    "one oracle": World(statistics=3, seed_sd=0.06, holdout=False),
    "one oracle and holdout": World(statistics=3, seed_sd=0.1),
    "two oracles": World(statistics=3, seed_sd=0.08, oracles=2, holdout=False),
    "four oracles": World(statistics=3, seed_sd=0.1, oracles=4, holdout=False, examples=100),
    "holdout": World(statistics=3, seed_sd=0.05, oracles=0),
    "groups": World(statistics=3, seed_sd=0.05, examples=60, group_size=4, holdout=False),
}


# three standard errors above alpha at 200 runs
LIMIT = 0.05 + 3 * (0.05 * 0.95 / RUNS) ** 0.5


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_error_rates_hold(world):
    assert rate(simulate(RUNS, world), "not removed") <= LIMIT
    assert rate(simulate(RUNS // 2, world, knows=0.5), "removed") <= LIMIT
    assert rate(simulate(RUNS // 4, world, untouched=True), "not removed") == 1.0
    assert rate(simulate(RUNS // 4, world, broken=1.0), "not removed") >= 0.95


def test_a_retrain_that_meets_the_unknown_in_a_way_of_its_own_is_spared_where_a_holdout_shows_it():
    world = World(statistics=3, oracles=3, examples=200)
    assert rate(simulate(RUNS, world, unlike=1.0), "not removed") <= LIMIT
    assert rate(simulate(RUNS // 4, replace(world, holdout=False), unlike=1.0), "not removed") >= 0.95


def test_a_leak_as_large_as_the_margin_is_rarely_called_removed():
    assert rate(simulate(RUNS, World(statistics=1, seed_sd=0.0, examples=60), knows=0.25), "removed") <= LIMIT + 0.02


def test_a_retrain_is_found_removed_where_the_examples_suffice():
    assert rate(simulate(60, World(statistics=3, seed_sd=0.04, oracles=2, examples=150)), "removed") >= 0.8


def test_error_rates_by_hand():
    verdicts = simulate(10, World(statistics=1), untouched=True)
    rows = {row["result"]: row for row in error_rates(verdicts)}
    assert rows["not removed"]["count"] == 10
    assert rows["removed"]["high"] == pytest.approx(1 - 0.025**0.1)
    assert sum(row["count"] for row in rows.values()) == 10
    assert error_rates([]) == []


def test_simulation_is_seeded():
    assert simulate(2, seed=3) == simulate(2, seed=3)
    assert simulate(1, seed=3) != simulate(1, seed=4)


def test_the_table_of_the_docs_is_whole():
    lines = table(2, examples=(10,), seed_sds=(0.05,)).splitlines()
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1


def test_the_table_of_pairs_is_whole():
    lines = pairs_table(2, examples=(10,), seed_sds=(0.05,)).splitlines()
    assert len(lines) == 2 + 4
    assert len({line.count("|") for line in lines}) == 1
