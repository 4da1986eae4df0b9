"""What forgetting costs a classifier: every method beside retraining, and gradient statistics beside a loop.

    python benchmarks/classification.py [--data FOLDER] [--dataset cifar10 digits] [--rounds 3] [--methods NAME ...]
        [--json FILE] [--markdown FILE]

First part: the small models of ``expunge bench classification`` forget a random 10 % with every method that serves
them (a class, if a method serves nothing else), each with the common settings of that benchmark, and are retrained, all
in one run. RTE is the time of the unlearning call alone, as the field reports it, with everything that the method
measures first; the fraction is of the CPU time of retraining in the same round.

Second part: the gradient statistics behind SalUn, SSD, Fisher forgetting and influence unlearning, beside the loop that
takes one example at a time (one forward, as many backward passes as the statistic asks for), on the same examples with
the same numbers.

Medians of rounds, one thread. Wall seconds stand beside CPU seconds and mean little on a shared machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge.benchmarks.predictor_data import known_data, make_request, read_data
from expunge.benchmarks.predictor_settings import serving, trials
from expunge.errors import ExpungeError
from expunge.methods.general.influence import (
    _flat,
    _product,
    _split,
    _summed,
    curvature,
    woodfisher_reference,
    woodfisher_weight,
)
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.runs.facts import hardware
from expunge.selections.importance import differentiable, squared_gradients
from expunge.selections.projections import projected_gradients
from expunge.selections.saliency import loss_gradient
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor

TARGET = 5.0


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """CPU and wall seconds of a call, and what it gave."""
    start = (time.process_time(), time.perf_counter())
    found = call()
    return time.process_time() - start[0], time.perf_counter() - start[1], found


def fractions(name: str, folder: str | None, rounds: int, methods: list[str]) -> list[dict[str, Any]]:
    """Time every method and retraining on one data set."""
    train, test = read_data(name, folder, None)
    data, request = known_data(name), make_request(name, "random", train, test, 0)
    start = data.start(train)
    original: Any = unlearn(start, DeletionRequest(test, train), "retrain", settings={**data.training, "seed": 1}).model
    whole = make_request(name, "class", train, test, 0)
    able, classes = (serving(data.kind, r.scenario)[0] for r in (request, whole))
    requests = {**dict.fromkeys(classes, whole), **dict.fromkeys(["retrain", *able], request)}
    wanted = ["retrain", *(m for m in sorted({*able, *classes}) if not methods or m in methods)]
    times: dict[str, list[tuple[float, float]]] = {}
    failed: dict[str, str] = {}
    for number in range(rounds):
        for method in wanted if number % 2 == 0 else wanted[::-1]:
            settings = dict(data.training) if method == "retrain" else trials(method, 1, {})[0]
            try:
                cpu, wall, _ = timed(lambda m=method, s=settings: unlearn(original, requests[m], m, settings=s))
                times.setdefault(method, []).append((cpu, wall))
            except ExpungeError as error:
                failed[method] = str(error)
    retrain = statistics.median(cpu for cpu, _ in times["retrain"])
    rows = []
    for method in wanted:
        if method in failed:
            rows.append({"dataset": name, "method": method, "failed": failed[method]})
            continue
        cpu, wall = (statistics.median(t[k] for t in times[method]) for k in (0, 1))
        spread = [t[0] / r[0] for t, r in zip(times[method], times["retrain"], strict=True)]
        rows.append(
            {
                "dataset": name, "method": method, "forgets": requests[method].name,
                "cpu_seconds": cpu, "wall_seconds": wall,
                "of_retraining": cpu / retrain, "low": min(spread), "high": max(spread), "rounds": len(times[method]),
            }
        )  # fmt: skip
        print(f"{name:8} {method:18} {cpu:7.2f} CPU s {wall:7.2f} s {cpu / retrain:6.2f} of retraining", flush=True)
    return rows


# ---- statistics --------------------------------------------------------------------------------------------------

Weights = Mapping[str, Tensor]


def one(task: Predictor, encoded: LabelledExamples, i: int) -> tuple[Tensor, Tensor]:
    """Outputs and loss of one example."""
    part = encoded.take([i])
    outputs = task.predict(task.batch(part))
    return outputs, task.losses(outputs, part.targets)


def loop_saliency(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """SalUn's gradient: the mean over examples."""
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for i in range(len(encoded)):
        found = torch.autograd.grad(one(task, encoded, i)[1].sum(), list(weights.values()))
        for name, g in zip(weights, found, strict=True):
            total[name] += g / len(encoded)
    return total


def loop_squares(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """SSD's importance: squared gradients of single examples."""
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for i in range(len(encoded)):
        found = torch.autograd.grad(one(task, encoded, i)[1].sum(), list(weights.values()))
        for name, g in zip(weights, found, strict=True):
            total[name] += g.square() / len(encoded)
    return total


def loop_fisher(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """The Fisher information: of every class of every example, weighted by its probability."""
    total = {name: torch.zeros_like(p) for name, p in weights.items()}
    for i in range(len(encoded)):
        outputs, _ = one(task, encoded, i)
        logs = torch.log_softmax(outputs, -1)[0]
        for c in range(len(logs)):
            found = torch.autograd.grad(-logs[c], list(weights.values()), retain_graph=c + 1 < len(logs))
            for name, g in zip(weights, found, strict=True):
                total[name] += float(logs[c].detach().exp()) * g.square() / len(encoded)
    return total


def loop_recursion(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """The recursion of influence unlearning's reference over gradients of single examples."""

    def each() -> Iterator[Tensor]:
        for i in range(len(encoded)):
            yield _flat(torch.autograd.grad(one(task, encoded, i)[1].sum(), list(weights.values())), weights)

    return {"all": woodfisher_reference(direction_of(weights), each())}


def ours_recursion(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """The same as the method takes it."""
    vector = direction_of(weights)
    first = _summed(task, encoded.take([0]), weights)
    directions = [dict(zip(weights, _split(u, weights), strict=True)) for u in (first, vector)]
    shared, own = projected_gradients(task, encoded, weights, directions).tolist()
    return {"all": vector - woodfisher_weight(own, shared) * first}


def direction_of(weights: Weights) -> Tensor:
    """A direction for Gauss-Newton products."""
    return torch.randn(sum(p.numel() for p in weights.values()), generator=torch.Generator().manual_seed(0))


def loop_product(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """A Gauss-Newton product of influence unlearning, one example at a time."""
    direction = direction_of(weights)
    parts = _split(direction, weights)
    total = torch.zeros_like(direction)
    for i in range(len(encoded)):
        found = task.statistics(encoded.take([i]))
        dummy = torch.zeros_like(found.logits, requires_grad=True)
        pulled = torch.autograd.grad(found.logits, list(weights.values()), dummy, create_graph=True)
        (change,) = torch.autograd.grad(pulled, dummy, parts, retain_graph=True)
        back = torch.autograd.grad(found.logits, list(weights.values()), curvature(found, change))
        total += _flat(back, weights) / len(encoded)
    return {"all": total}


def ours_saliency(task: Predictor, encoded: LabelledExamples, weights: Weights) -> dict[str, Tensor]:
    """As the selection takes it."""
    size = task.tokens_per_forward
    batches = [list(range(k, min(k + size, len(encoded)))) for k in range(0, len(encoded), size)]
    return loss_gradient(task, encoded, dict(weights), batches)


STATISTICS: dict[str, tuple[Callable[..., dict[str, Tensor]], Callable[..., dict[str, Tensor]]]] = {
    "SalUn: gradient": (loop_saliency, ours_saliency),
    "SSD: squared gradients": (loop_squares, lambda t, e, w: squared_gradients(t, e, w)),
    "Fisher: all classes": (loop_fisher, lambda t, e, w: squared_gradients(t, e, w, kind="fisher")),
    "influence: the reference's recursion": (loop_recursion, ours_recursion),
    "influence: Gauss-Newton product": (
        loop_product, lambda t, e, w: {"all": _product(t, e, w, direction_of(w))},
    ),
}  # fmt: skip


def compare(name: str, folder: str | None, rounds: int, examples: int) -> list[dict[str, Any]]:
    """Time every statistic both ways on one data set, and compare the numbers."""
    train, test = read_data(name, folder, None)
    data = known_data(name)
    some = train.select(range(examples))
    settings = {**data.training, "epochs": 1, "seed": 1}
    task: Any = unlearn(data.start(train), DeletionRequest(test, train), "retrain", settings=settings).model
    encoded, weights = task.encode(some), dict(task.named_parameters())
    rows = []
    for title, (loop, ours) in STATISTICS.items():
        times: dict[str, list[float]] = {"loop": [], "ours": []}
        found: dict[str, dict[str, Tensor]] = {}
        for number in range(rounds):
            order = [("loop", loop), ("ours", ours)]
            for way, call in order if number % 2 == 0 else order[::-1]:
                with differentiable(task, weights):
                    cpu, _, found[way] = timed(lambda call=call: call(task, encoded, weights))
                times[way].append(cpu)
        worst = max(
            float((found["ours"][k] - v).abs().max() / v.abs().max().clamp_min(1e-30)) for k, v in found["loop"].items()
        )
        ratios = sorted(a / b for a, b in zip(times["loop"], times["ours"], strict=True))
        row = {
            "dataset": name, "statistic": title, "examples": examples,
            "loop_ms": 1e3 * statistics.median(times["loop"]) / examples,
            "ours_ms": 1e3 * statistics.median(times["ours"]) / examples,
            "speedup": statistics.median(ratios), "low": ratios[0], "high": ratios[-1], "difference": worst,
        }  # fmt: skip
        rows.append(row)
        print(f"{name:8} {title:40} {row['speedup']:5.1f}x, largest relative difference {worst:.0e}", flush=True)
    return rows


def to_markdown(costs: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> str:
    """The two tables."""
    out = []
    for name, rows in itertools.groupby(costs, key=lambda r: r["dataset"]):
        out += [f"### {known_data(name).title}: time of each method", "",
                "| method | of retraining (CPU) | RTE, CPU s | RTE, wall s |", "| --- |" + " ---: |" * 3]  # fmt: skip
        for r in rows:
            if "failed" in r:
                out.append(f"| {r['method']} | failed: {r['failed']} | | |")
            else:
                named = r["method"] + ("" if "random" in r["forgets"] else " (a class)")
                out.append(
                    f"| {named} | **{r['of_retraining']:.3f}** [{r['low']:.3f}, {r['high']:.3f}] | "
                    f"{r['cpu_seconds']:.2f} | {r['wall_seconds']:.2f} |"
                )
        out.append("")
    for name, rows in itertools.groupby(speeds, key=lambda r: r["dataset"]):
        out += [f"### {known_data(name).title}: gradient statistics", "",
                "| statistic | loop / ours | loop, ms per example | ours | largest relative difference |",
                "| --- |" + " ---: |" * 4]  # fmt: skip
        for r in rows:
            met = "" if r["speedup"] >= TARGET else " missed"
            out.append(
                f"| {r['statistic']} | **{r['speedup']:.1f}**{met} [{r['low']:.1f}, {r['high']:.1f}] | "
                f"{r['loop_ms']:.2f} | {r['ours_ms']:.3f} | {r['difference']:.0e} |"
            )
        out.append("")
    return "\n".join(out)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--dataset", nargs="+", default=["cifar10", "digits"])
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=256, help="of each statistic")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    costs: list[dict[str, Any]] = []
    speeds: list[dict[str, Any]] = []
    for name in given.dataset:
        speeds += compare(name, given.data, given.rounds, given.examples)
        costs += fractions(name, given.data, given.rounds, given.methods)
        if given.json:
            facts = {"date": date.today().isoformat(), "hardware": hardware(), "threads": 1}
            given.json.write_text(json.dumps({**facts, "costs": costs, "statistics": speeds}, indent=1) + "\n")
        if given.markdown:
            given.markdown.write_text(to_markdown(costs, speeds), encoding="utf-8")
    if not given.markdown:
        print(to_markdown(costs, speeds))


if __name__ == "__main__":
    main()
