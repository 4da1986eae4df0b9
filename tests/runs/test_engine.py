"""Calls in parallel give what they give in order, on this machine and on clusters."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import BadInput, MissingExtra
from expunge.runs.engine import run_all, run_in_order

# A cluster pickles functions of a test file by reference and cannot import this file: a function of a library is used.
CALL = os.path.join
PAIRS = [("a", str(k)) for k in range(5)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_call_gives_its_result(jobs: int) -> None:
    assert sorted(run_all(CALL, PAIRS, jobs=jobs)) == [f"a/{k}" for k in range(5)]


def test_this_process_keeps_its_number_of_threads() -> None:
    before = torch.get_num_threads()
    assert list(run_all(_with_threads, [(before + 1,)], jobs=1)) == [before + 1]
    assert torch.get_num_threads() == before


def _with_threads(count: int) -> int:
    torch.set_num_threads(count)
    return torch.get_num_threads()


def test_a_cluster_without_an_engine_is_refused() -> None:
    with pytest.raises(BadInput, match="--engine"):
        list(run_all(CALL, PAIRS, cluster="somewhere:1"))


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_library_says_which_extra(engine: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"expunge\[{engine}\]"):
        list(run_all(CALL, PAIRS, engine=engine))  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 2])
def test_in_order_is_the_order_of_the_arguments(jobs: int) -> None:
    heard: list[tuple[int, int, str]] = []
    found = run_in_order(CALL, PAIRS, jobs=jobs, heard=lambda *told: heard.append(told))
    assert found == [f"a/{k}" for k in range(5)]
    assert [told[:2] for told in heard] == [(k, 5) for k in range(1, 6)]
    assert sorted(told[2] for told in heard) == found


def test_whoever_ends_first_is_not_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(call: Any, given: Any, **_: Any) -> Any:
        return (call(*one) for one in reversed(given))

    monkeypatch.setattr("expunge.runs.engine.run_all", backwards)
    assert run_in_order(CALL, PAIRS) == [f"a/{k}" for k in range(5)]


def test_dask_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(BadInput, match="--cluster ADDRESS"):
        list(run_all(CALL, PAIRS, engine="dask"))


@pytest.mark.slow
def test_ray_with_two_workers() -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert sorted(run_all(CALL, PAIRS, engine="ray")) == [f"a/{k}" for k in range(5)]
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_dask_with_two_workers(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, local_directory=str(tmp_path)
        ) as cluster,
    ):
        found = list(run_all(CALL, PAIRS, engine="dask", cluster=cluster.scheduler_address))
    assert sorted(found) == [f"a/{k}" for k in range(5)]
