"""Logit lens: is the answer still readable in a layer below the output?

The final norm and output head are applied to what every block gives out, as if it were the last. A model that was only
kept from saying an answer may still hold it further down. Every layer is also read with the original's norm and head,
which a model whose own head was changed cannot spoil.

Per-example statistic for the verdict: ``lens_nll``, the lowest NLL of the answer over all layers and both heads: the
best that any of these readings gets out of a model, taken in the same way of every model.

Source: nostalgebraist 2020, interpreting GPT: the logit lens; as an audit of unlearning, Patil et al. 2023, Can
Sensitive Information Be Deleted From LLMs? (arXiv:2309.17410).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pydantic import Field

from expunge.audits.activations import LensHead, lens, spread_layers
from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar, Table
from expunge.audits.inspector import NoWeights, opened
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.errors import UnsupportedModel

ROLES = ("forget", "holdout")


class LogitLens(Audit):
    """Probability and rank of the answers' tokens per layer."""

    id = "logit_lens"
    title = "Is the answer still readable below the output?"
    family = "parametric"
    default = False
    paper = "Patil et al. 2023, Can Sensitive Information Be Deleted From LLMs? (arXiv:2309.17410)"

    class Config(AuditConfig):
        """Settings of the logit lens."""

        layers: int = Field(12, ge=1, description="blocks read at most, evenly spread, the last among them")
        max_examples: int = Field(200, ge=1, description="examples of a set used at most, drawn by seed")

    def run(self, seen: Observations) -> Finding:
        pairs = {role: self._pairs(seen, role) for role in ROLES}
        if not pairs["forget"]:
            return Finding(self.id, "no data", note="no forget example has an answer")
        values = Values(seen)
        curves: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
        done: dict[int, str] = {}
        try:
            copies = {n: opened(seen.models[n], n) for n in seen.models if n == "original"}
            original = LensHead(copies["original"]) if copies else None
            for model, given in seen.models.items():
                twin = done.setdefault(id(given), model)
                if twin == model:
                    task = copies.get(model) or opened(given, model)
                    layers = spread_layers(task, self.config.layers)
                    heads = [LensHead(task)]
                    if original is not None and model != "original" and _same_shape(task, copies["original"]):
                        heads.append(original)
                    curves[model] = {r: lens(task, [*p.values()], layers, heads) for r, p in pairs.items() if p}
                    seen.spend(model, task.cost)
                else:
                    curves[model] = curves[twin]
                for role, found in curves[model].items():
                    best = found[..., 0].min(axis=(0, 1))
                    values.add(model, role, "lens_nll", dict(zip(pairs[role], map(float, best), strict=True)))
        except (NoWeights, UnsupportedModel) as error:
            return Finding(self.id, "no data", note=str(error))
        shown = {model: found["forget"] for model, found in curves.items()}
        return Finding(
            self.id,
            scalars=_SCALARS,
            estimates={model: self._estimates(seen, values, model, [*pairs["forget"]], shown) for model in shown},
            per_example=values.per_example(),
            evidence=values.evidence("lens_nll", "forget", "low"),
            plots=[_plot(shown)],
            tables=[_table(shown)],
            attempted={"layers": layers, "examples": {role: len(p) for role, p in pairs.items()}},
        )

    def _pairs(self, seen: Observations, role: str) -> dict[str, Any]:
        found = seen.examples.pairs(role, "answer")
        drawn = np.random.default_rng(seen.seed).permutation(len(found))[: self.config.max_examples]
        ids = sorted(found)
        return {ids[k]: found[ids[k]][0] for k in sorted(drawn)}

    def _estimates(
        self, seen: Observations, values: Values, model: str, ids: list[str], curves: dict[str, Any]
    ) -> dict[str, Estimate]:
        own = curves[model][0]

        def mean(numbers: Any) -> Estimate:
            return seen.mean("forget", dict(zip(ids, map(float, numbers), strict=True)))

        best = values.get(model, "forget", "lens_nll")
        hidden = own[:-1, :, 0].min(axis=0) if len(own) > 1 else None
        none = Estimate(None, note="only the last block was read")
        other = Estimate(None, note="it is the original, or has another shape")
        return {
            "probability_output": mean(np.exp(-own[-1, :, 0])),
            "probability_hidden": none if hidden is None else mean(np.exp(-hidden)),
            "probability_best": mean([math.exp(-best[i]) for i in ids]),
            "rank_output": mean(own[-1, :, 1]),
            "rank_hidden": none if hidden is None else mean(own[:-1, :, 1].max(axis=0)),
            "probability_original_head": mean(np.exp(-curves[model][1, :, :, 0].min(axis=0)))
            if len(curves[model]) > 1
            else other,
        }


def _same_shape(task: Any, other: Any) -> bool:
    mine, theirs = task.head_weights()["weight"], other.head_weights()["weight"]
    return bool(mine.shape == theirs.shape)


_SCALARS = [
    Scalar("probability_output", "Probability of the answer at the output", "probability", "high"),
    Scalar("probability_hidden", "The same in the best block below the last", "probability", "high"),
    Scalar("probability_original_head", "Best block, read with the original's head", "probability", "high"),
    Scalar("probability_best", "Best of all readings", "probability", "high"),
    Scalar("rank_output", "Mean reciprocal rank of its tokens at the output", "1 / rank", "high"),
    Scalar("rank_hidden", "The same in the best block below the last", "1 / rank", "high"),
]


def _layers(found: Any) -> range:
    return range(found.shape[1])


def _plot(curves: dict[str, Any]) -> Plot:
    series = {
        model: [(row + 1, float(np.exp(-found[0, row, :, 0]).mean())) for row in _layers(found)]
        for model, found in curves.items()
    }
    return Plot("curve", "Probability of the answer, block by block", "block read", "probability", series)


def _table(curves: dict[str, Any]) -> Table:
    deepest = max(len(_layers(found)) for found in curves.values())
    rows = []
    for row in range(deepest):
        cells = []
        for found in curves.values():
            inside = row < found.shape[1]
            probability = f"{np.exp(-found[0, row, :, 0]).mean():.3f}" if inside else ""
            rank = f"{found[0, row, :, 1].mean():.3f}" if inside else ""
            cells.append(f"{probability} (1/rank {rank})" if inside else "")
        rows.append((f"block {row + 1} of {deepest} read", *cells))
    return Table("Probability of the answer's tokens by block", ("block", *curves), rows)
