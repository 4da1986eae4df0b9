"""ZRF: does the model know as little of the forget set as one with random weights?

``ZRF = 1 - mean_i JS(softmax f(x_i), softmax b(x_i))`` with b a model of the same architecture and fresh weights, and
the Jensen-Shannon divergence in nats (at most log 2). A model that never saw the examples is *not* random on them: the
number to come near to is the oracle's, and beyond it lies a model that behaves as if it had been broken there.

The released code averages over all cells and takes KL(m || p) for KL(p || m); ``released_js`` gives it.

Source: Chundawat et al. 2023, Can Bad Teaching Induce Forgetting? (arXiv:2205.08096), section 4.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.base import Audit, AuditConfig, Finding, Scalar
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.errors import BadInput
from expunge.tasks.kinds import CLASSIFIERS

Array = NDArray[np.float64]
SETS = {"forget": "the forget set", "retain": "what is kept", "holdout": "the holdout set"}


def js_divergence(p: Array, q: Array) -> Array:
    """Return ``KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``.

    Args:
        p, q: (n, C) probabilities; 0 log 0 is 0.

    Returns:
        (n,) in nats, between 0 and log 2.
    """
    m = (p + q) / 2
    return np.asarray((_divergence(p, m) + _divergence(q, m)) / 2)


def released_js(p: Array, q: Array) -> float:
    """Return what the reference implementation averages (for parity only): KL(m || p) and KL(m || q), over all cells.

    Args:
        p, q: (n, C) probabilities above 0; at 0 the reference is infinite.
    """
    m = (p + q) / 2
    return float((m * np.log(m / p) + m * np.log(m / q)).mean() / 2)


def zrf(p: Array, q: Array) -> float:
    """Return the zero retrain forgetting score of (n, C) probabilities against those of a random model.

    Raises:
        ValueError: no example.
    """
    if not len(p):
        raise ValueError("there is no example to compare on")
    return 1.0 - float(js_divergence(p, q).mean())


def _divergence(p: Array, q: Array) -> Array:
    return np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.log(np.where(q > 0, q, 1.0))), 0.0).sum(-1)


class Zrf(Audit):
    """Agreement with models of random weights, on each example set."""

    id = "zrf"
    title = "Does the model know as little as one with random weights?"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFIERS
    reads = tuple((role, "prediction") for role in SETS)
    default = False
    paper = "Chundawat et al. 2023, Can Bad Teaching Induce Forgetting? (arXiv:2205.08096)"

    class Config(AuditConfig):
        """Settings of ZRF."""

        random_models: int = Field(3, ge=1, description="models of fresh weights, averaged; the paper takes one")

    def run(self, seen: Observations) -> Finding:
        try:
            fresh = [seen.models["unlearned"].fresh(seen.seed + k) for k in range(self.config.random_models)]
        except BadInput as error:
            return Finding(self.id, "no data", note=f"no model of random weights can be made: {error.problems[0]}")
        values, roles = Values(seen), [role for role in SETS if role in seen.examples.roles]
        for role in roles:
            examples = seen.models["unlearned"].encode(seen.examples.dataset(role))
            random = [model.observe(examples).probabilities for model in fresh]
            for model in seen.models:
                found = seen.predictions(model, role)
                score = 1 - np.mean([js_divergence(found.probabilities, p) for p in random], axis=0)
                values.add(model, role, "zrf", found.by_id(score))
        for model in fresh:
            seen.spend("unlearned", model.cost)
        return Finding(
            self.id,
            scalars=[
                Scalar(f"{role}_zrf", f"ZRF on {SETS[role]}", "1 - nats", "low" if role == "forget" else "none")
                for role in roles
            ],
            estimates={
                model: {f"{role}_zrf": values.mean(model, role, "zrf") for role in roles} for model in seen.models
            },
            per_example=values.per_example(),
            attempted={"random models": len(fresh), "lowest possible": round(1 - float(np.log(2)), 4)},
        )
