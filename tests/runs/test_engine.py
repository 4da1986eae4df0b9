"""Calls in parallel give what they give in order, on this machine and on clusters."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from expunge.errors import BadInput, MissingExtra
from expunge.runs.engine import run_all

# A cluster pickles functions of a test file by reference and cannot import this file: a function of a library is used.
CALL = os.path.join
PAIRS = [("a", str(k)) for k in range(5)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_call_gives_its_result(jobs: int) -> None:
    assert sorted(run_all(CALL, PAIRS, jobs=jobs)) == [f"a/{k}" for k in range(5)]


def test_a_cluster_without_an_engine_is_refused() -> None:
    with pytest.raises(BadInput, match="--engine"):
        list(run_all(CALL, PAIRS, cluster="somewhere:1"))


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_library_says_which_extra(engine: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"expunge\[{engine}\]"):
        list(run_all(CALL, PAIRS, engine=engine))  # type: ignore[arg-type]


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
