"""Many independent calls at once: on the cores of this machine, or on a Ray or Dask cluster, through joblib."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal, TypeVar

import joblib

from expunge.errors import BadInput, MissingExtra, Problem
from expunge.runs.facts import usable_cores

T = TypeVar("T")
Engine = Literal["local", "ray", "dask"]


def run_all(
    call: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    engine: Engine = "local",
    cluster: str | None = None,
) -> Generator[T]:
    """Make a call for every tuple of arguments, several at a time, and yield what each gives as it comes.

    Each call runs in a process of its own, but a single job in this one; those of a cluster must see the same files
    under the same paths. A call may set the number of threads: this process has its own number again afterwards.

    Args:
        call: a function of a module, so that other processes find it.
        arguments: of each call; values that can be pickled between our own processes.
        jobs: calls at a time; by default one per usable core, or as many as the cluster has room for.
        engine: where to run: "local", "ray" or "dask".
        cluster: address of the cluster; by default the one that this process is connected to or that the environment
            names (RAY_ADDRESS, DASK_SCHEDULER_ADDRESS).

    Raises:
        MissingExtra: the engine's library is not installed.
        BadInput: no cluster answers.
    """
    import torch

    threads = torch.get_num_threads()
    with connected(engine, cluster), contextlib.ExitStack() as after:
        after.callback(torch.set_num_threads, threads)
        count = min(len(arguments), jobs or usable_cores()) if engine == "local" else jobs or -1
        backend = {"local": "loky", "ray": "ray", "dask": "dask"}[engine]
        with joblib.parallel_config(backend=backend, n_jobs=count):
            active, _ = joblib.parallel.get_active_backend()
            # Ray's backend gives everything at the end; the others give each result when it is there.
            order = "generator_unordered" if active.supports_return_generator else "list"
            # One call per task, so that an interruption loses no more than what is running.
            parallel = joblib.Parallel(return_as=order, batch_size=1, pre_dispatch="all")
            yield from parallel(joblib.delayed(call)(*given) for given in arguments)


def run_in_order(
    call: Callable[..., T],
    arguments: Sequence[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    heard: Callable[[int, int, T], None] | None = None,
) -> list[T]:
    """Make a call for every tuple of arguments on this machine, several at a time, and return what each gives.

    Args:
        call, arguments, jobs: as in ``run_all``.
        heard: told, as each call ends, how many have, of how many, and what it gave.

    Returns:
        In the order of the arguments.
    """
    found: dict[int, T] = {}
    numbered = [(place, call, given) for place, given in enumerate(arguments)]
    with contextlib.closing(run_all(_numbered, numbered, jobs=jobs)) as ended:
        for count, (place, result) in enumerate(ended, 1):
            found[place] = result
            if heard is not None:
                heard(count, len(arguments), result)
    return [found[place] for place in range(len(arguments))]


def _numbered(place: int, call: Callable[..., T], given: tuple[Any, ...]) -> tuple[int, T]:
    return place, call(*given)


@contextlib.contextmanager
def connected(engine: Engine, cluster: str | None = None) -> Iterator[None]:
    """Connect to a cluster, or use the connection that this process has; see ``run_all``."""
    if engine == "ray":
        with _ray(cluster):
            yield
    elif engine == "dask":
        with _dask(cluster):
            yield
    else:
        if cluster is not None:
            raise BadInput(Problem("--cluster", "is given without an engine", "add --engine ray or --engine dask"))
        yield


@contextlib.contextmanager
def _ray(cluster: str | None) -> Iterator[None]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingExtra(Problem("--engine ray", "needs Ray", "pip install 'expunge[ray]'")) from error
    ours = not ray.is_initialized()
    if ours:
        try:
            ray.init(address=cluster or os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            fix = "start one with `ray start --head`, or give --cluster ADDRESS"
            raise BadInput(Problem("--engine ray", f"no cluster answers: {_first(error)}", fix)) from error
    register_ray()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


@contextlib.contextmanager
def _dask(cluster: str | None) -> Iterator[None]:
    try:
        from distributed import Client, get_client
    except ImportError as error:
        raise MissingExtra(Problem("--engine dask", "needs Dask", "pip install 'expunge[dask]'")) from error
    address = cluster or os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address is None:
        try:
            get_client()
        except ValueError:
            fix = "give --cluster ADDRESS, or set DASK_SCHEDULER_ADDRESS"
            raise BadInput(Problem("--engine dask", "no cluster is named", fix)) from None
        yield
        return
    try:
        client = Client(address, timeout=20)
    except (OSError, ValueError, TimeoutError) as error:
        fix = "start one with `dask scheduler` and `dask worker`, or correct the address"
        raise BadInput(Problem("--engine dask", f"no cluster answers at {address}: {_first(error)}", fix)) from error
    with client:
        yield


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
