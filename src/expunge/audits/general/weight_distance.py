"""Weight distance: how far, and where, the weights moved from the original.

It says how much was changed, not whether anything was forgotten, so it gives the verdict nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.observations import Observations
from expunge.errors import ExpungeError
from expunge.tasks.kinds import KINDS

if TYPE_CHECKING:
    from expunge.tasks.base import Task

# The first number in a module's name is its layer.
_LAYER = re.compile(r"(.*?)\.(\d+)\.(.+)")


def squared_distances(model: Task, original: Task) -> dict[str, tuple[float, float]]:
    """Compare two models weight by weight in float32; adapters are folded into a copy first.

    Of a model behind a guard, the weights are those that the guard surrounds.

    Returns:
        Name of the weight -> (squared L2 distance, squared L2 norm of the original's).

    Raises:
        ExpungeError: the models do not have the same weights by name and shape.
    """
    here, there = _weights(model), _weights(original)
    different = sorted(here.keys() ^ there.keys())
    different += [name for name in here.keys() & there.keys() if here[name].shape != there[name].shape]
    if different:
        raise ExpungeError(f"not the same architecture: {len(different)} weights differ, such as {different[0]}")
    out = {}
    for name, weight in there.items():
        before = weight.detach().float()
        change = here[name].detach().to(before.device).float() - before
        out[name] = (float(change.square().sum(dtype=torch.float64)), float(before.square().sum(dtype=torch.float64)))
    return out


def relative(distance: float, norm: float) -> float:
    """Return ``||w - w0|| / ||w0||`` from squares: 0 where nothing changed, infinite where a zero weight moved."""
    if distance == 0.0:
        return 0.0
    return math.sqrt(distance / norm) if norm else math.inf


def _weights(task: Task) -> dict[str, Tensor]:
    task = getattr(task, "base", task)  # a wrapped model need not have one
    weights = dict(task.named_parameters())
    if any("lora_" in name for name in weights):
        merged = task.copy()
        merged.merge_lora()
        weights = dict(merged.named_parameters())
    return weights


class WeightDistance(Audit):
    """Relative L2 distance from the original, overall and per module."""

    id = "weight_distance"
    title = "How far did the weights move, and where?"
    family = "parametric"
    tasks = KINDS
    needs = ("original",)
    paper = "Golatkar et al. 2020, Eternal Sunshine of the Spotless Net (arXiv:1911.04933)"

    class Config(AuditConfig):
        """Settings of the weight-distance audit."""

        listed: int = Field(10, ge=0, description="how many of the modules that moved most are listed per model")

    def run(self, seen: Observations) -> Finding:
        estimates: dict[str, dict[str, Estimate]] = {}
        tables = []
        original = seen.models["original"]
        for model, task in seen.models.items():
            if model == "original":
                continue
            try:
                squares = squared_distances(task, original)
            except ExpungeError as error:
                estimates[model] = dict.fromkeys(
                    ("relative_distance", "tensors_changed"), Estimate(None, note=str(error))
                )
                continue
            total = relative(sum(d for d, _ in squares.values()), sum(n for _, n in squares.values()))
            changed = sum(d > 0 for d, _ in squares.values())
            estimates[model] = {
                "relative_distance": Estimate(total, n=len(squares)),
                "tensors_changed": Estimate(changed / len(squares), n=len(squares)),
            }
            modules = _modules(squares)
            largest = sorted(modules, key=lambda name: (-modules[name], name))[: self.config.listed]
            rows = [(name, modules[name] if math.isfinite(modules[name]) else "from zero") for name in largest]
            tables.append(Table(f"Modules of '{model}' that moved most", ("module", "relative L2 distance"), rows))
            tables += layer_map(modules, model)
        if not tables:
            return Finding(self.id, "no data", note=next(iter(estimates.values()))["relative_distance"].note)
        return Finding(
            self.id,
            scalars=[
                Scalar("relative_distance", "Relative L2 distance from the original", "||w - w0|| / ||w0||", digits=4),
                Scalar("tensors_changed", "Weight tensors changed", "share"),
            ],
            estimates=estimates,
            tables=tables,
            note=_guarded(seen.models),
            attempted={"compared in": "float32"},
        )


def _guarded(models: Mapping[str, Task]) -> str:
    names = [f"'{name}'" for name, task in models.items() if getattr(task, "base", task) is not task]
    return f"Behind a guard: {', '.join(names)}. The weights compared are those that it surrounds." if names else ""


def layer_map(modules: Mapping[str, float], model: str) -> list[Table]:
    """Lay relative distances out by layer and kind of module: where in the depth of a model, and in what, it moved.

    Args:
        modules: name -> relative distance; names with a number in them, such as "h.3.attn", are of a layer.
        model: what the model is called.

    Returns:
        One table, a row per layer, or none where no module is of a numbered layer.
    """
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for name, distance in modules.items():
        found = _LAYER.match(name)
        if found:
            cells.setdefault((found[1], int(found[2])), {})[found[3]] = distance
    if not cells:
        return []
    kinds = list(dict.fromkeys(kind for row in cells.values() for kind in row))
    stacks = {stack for stack, _ in cells}
    rows = [
        (f"{stack} {number}" if len(stacks) > 1 else number, *(_cell(row.get(kind)) for kind in kinds))
        for (stack, number), row in sorted(cells.items())
    ]
    return [Table(f"Where in '{model}' the weights moved: relative L2 distance by layer", ("layer", *kinds), rows)]


def _cell(distance: float | None) -> str:
    if distance is None:
        return ""
    return f"{distance:.4f}" if math.isfinite(distance) else "from zero"


def _modules(squares: dict[str, tuple[float, float]]) -> dict[str, float]:
    sums: dict[str, tuple[float, float]] = {}
    for name, (distance, norm) in squares.items():
        module = name.rpartition(".")[0] or name
        before = sums.get(module, (0.0, 0.0))
        sums[module] = (before[0] + distance, before[1] + norm)
    return {module: relative(*pair) for module, pair in sums.items()}
