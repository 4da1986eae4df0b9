"""Linear probe: can a linear classifier read the answers off what the layers hold?

The probe learns on retained facts to name the next answer token from the hidden state before it, and is asked about the
forgotten facts. It names only tokens that tell answers apart: in each answer the first that recurs in retained answers,
but not in many of them.
The block is the one that does best on retained facts in cross-validation over people (or examples): forgotten facts
have no say in it. The control task is the same probe trained on shuffled labels; what it still gets right is no
knowledge, and the difference is the selectivity (Hewitt & Liang). A probe that works on the oracle as well measures
what can be guessed, so read it against the oracle.

The verdict gets nothing from it: a probe is trained anew for every model, so its numbers vary for more reasons than
knowledge.

Source: Alain & Bengio 2016 (arXiv:1610.01644); Hewitt & Liang 2019, Designing and Interpreting Probes with Control
Tasks (arXiv:1909.03368).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from expunge.audits.activations import AnswerStates, answer_states, spread_layers
from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Plot, Scalar
from expunge.audits.inspector import NoWeights, opened
from expunge.audits.observations import Observations
from expunge.audits.values import Values
from expunge.errors import UnsupportedModel

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

Array = NDArray[np.float64]
Index = NDArray[np.int64]
FOLDS = 4


@dataclass(frozen=True)
class Probe:
    """A linear classifier: class ``argmax_c (x - mean) / scale @ weights[:, c] + bias[c]``."""

    mean: Array
    scale: Array
    weights: Array
    bias: Array

    def classify(self, features: Array) -> Index:
        """Return the class of each row of (n, d) features."""
        return np.argmax((features - self.mean) / self.scale @ self.weights + self.bias, axis=1)


def fit_probe(features: Array, labels: Index, classes: int, penalty: float) -> Probe:
    """Fit a ridge classifier, one against all, on standardised features.

    Args:
        features: (n, d).
        labels: (n,) class of each row, from 0.
        classes: how many there are.
        penalty: ridge penalty per row; larger is flatter.
    """
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    x, y = (features - mean) / scale, np.eye(classes)[labels]
    bias = y.mean(0)
    gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    return Probe(mean, scale, np.linalg.solve(gram, x.T @ (y - bias) / len(x)), bias)


def telling_tokens(targets: Index, example: Index, at_least: int, share: float) -> Index:
    """Return the tokens that tell answers apart.

    Args:
        targets, example: (rows,) the tokens of all answers, and which answer each is in.
        at_least: answers that must hold a token, so that there is something to learn.
        share: of all answers that may hold it at most; one more than ``at_least`` always may.
    """
    pairs = np.unique(np.stack([targets, example]), axis=1)
    tokens, counts = np.unique(pairs[0], return_counts=True)
    most = max(share * len(np.unique(example)), at_least + 1)
    return tokens[(counts >= at_least) & (counts <= most)]


class LinearProbe(Audit):
    """Accuracy and selectivity of probes for the answers' tokens."""

    id = "linear_probe"
    title = "Do the layers still hold what the output no longer says?"
    family = "parametric"
    default = False
    needs = ("retain",)
    paper = "Hewitt & Liang 2019, Designing and Interpreting Probes with Control Tasks (arXiv:1909.03368)"

    class Config(AuditConfig):
        """Settings of the linear probe."""

        layers: int = Field(8, ge=1, description="blocks probed at most, evenly spread, the last among them")
        penalty: float = Field(0.01, gt=0, description="ridge penalty on standardised features")
        controls: int = Field(5, ge=1, description="probes trained on shuffled labels")
        max_examples: int = Field(500, ge=4, description="examples of a set used at most, drawn by seed")
        at_least: int = Field(2, ge=2, description="retained answers that must hold a token for it to be asked about")
        share: float = Field(0.02, gt=0, le=1, description="share of retained answers that may hold it at most")

    def run(self, seen: Observations) -> Finding:
        ids = {role: self._ids(seen, role) for role in ("retain", "forget")}
        if len(ids["retain"]) < 2 * FOLDS:
            return Finding(self.id, "no data", note=f"{len(ids['retain'])} retained answers are too few to learn from")
        values = Values(seen)
        found: dict[str, _Probed] = {}
        first: dict[int, str] = {}
        try:
            for model, given in seen.models.items():
                twin = first.setdefault(id(given), model)
                if twin == model:
                    task = opened(given, model)
                    found[model] = self._probe(task, seen, ids)
                    seen.spend(model, task.cost)
                found[model] = found[twin]
                values.add(model, "forget", "probe_right", found[model].right)
                values.add(model, "forget", "probe_control", found[model].control)
        except (NoWeights, UnsupportedModel) as error:
            return Finding(self.id, "no data", note=str(error))
        if not any(probed.right for probed in found.values()):
            return Finding(self.id, "no data", note="no forgotten answer holds a token that recurs in retained answers")
        return Finding(
            self.id,
            scalars=_SCALARS,
            estimates={model: self._estimates(seen, values, model) for model in seen.models},
            per_example=values.per_example(),
            plots=[
                Plot(
                    "curve",
                    "Answer tokens read by a linear probe, block by block",
                    "block",
                    "share right",
                    {model: probed.curve for model, probed in found.items()},
                )
            ],
            attempted={
                "learned on": f"{len(ids['retain'])} retained answers",
                "asked about": f"{len(found['unlearned'].right)} forgotten answers",
                "tokens asked about": {model: probed.classes for model, probed in found.items()},
                "block chosen on retained answers": {model: probed.layer for model, probed in found.items()},
                "controls": self.config.controls,
            },
        )

    def _ids(self, seen: Observations, role: str) -> list[str]:
        ids = sorted(seen.examples.pairs(role, "answer"))
        drawn = np.random.default_rng(seen.seed).permutation(len(ids))[: self.config.max_examples]
        return [ids[k] for k in sorted(drawn)]

    def _probe(self, task: CausalLM, seen: Observations, ids: dict[str, list[str]]) -> _Probed:
        config, layers = self.config, spread_layers(task, self.config.layers)
        pairs = {role: seen.examples.pairs(role, "answer") for role in ids}
        kept, gone = (answer_states(task, [pairs[r][i][0] for i in ids[r]], layers) for r in ("retain", "forget"))
        tokens = telling_tokens(kept.targets, kept.example, config.at_least, config.share)
        kept, gone = _only(kept, tokens), _only(gone, tokens)
        if not len(kept.targets) or not len(gone.targets):
            return _Probed({}, {}, [], 0, len(tokens))
        labels, asked = np.searchsorted(tokens, kept.targets), np.searchsorted(tokens, gone.targets)
        rng = np.random.default_rng(seen.seed)
        people = seen.groups("retain") or {i: i for i in ids["retain"]}
        names = sorted({people[i] for i in ids["retain"]})
        fold_of = dict(zip(names, rng.permutation(len(names)) % FOLDS, strict=True))
        fold = np.array([fold_of[people[ids["retain"][e]]] for e in kept.example])
        curve, scores = [], []
        for row, layer in enumerate(layers):
            x, new = kept.states[:, row].astype(np.float64), gone.states[:, row].astype(np.float64)
            right = []
            for k in range(FOLDS):
                if (fold != k).any() and (fold == k).any():
                    probe = fit_probe(x[fold != k], labels[fold != k], len(tokens), config.penalty)
                    right += list(probe.classify(x[fold == k]) == labels[fold == k])
            scores.append(float(np.mean(right)) if right else 0.0)
            probe = fit_probe(x, labels, len(tokens), config.penalty)
            curve.append((layer + 1, float((probe.classify(new) == asked).mean())))
            if scores[-1] == max(scores):
                best, chosen = row, probe
        x, new = kept.states[:, best].astype(np.float64), gone.states[:, best].astype(np.float64)
        control = np.zeros(len(asked))
        for _ in range(config.controls):
            false = fit_probe(x, rng.permutation(labels), len(tokens), config.penalty)
            control += (false.classify(new) == asked) / config.controls
        truly = (chosen.classify(new) == asked).astype(np.float64)
        return _Probed(
            _by_example(truly, gone.example, ids["forget"]),
            _by_example(control, gone.example, ids["forget"]),
            curve,
            layers[best] + 1,
            len(tokens),
        )

    def _estimates(self, seen: Observations, values: Values, model: str) -> dict[str, Estimate]:
        right, control = (values.get(model, "forget", name) for name in ("probe_right", "probe_control"))
        return {
            "right": seen.mean("forget", right),
            "right_control": seen.mean("forget", control),
            "selectivity": seen.mean("forget", {i: right[i] - control[i] for i in right}),
        }


@dataclass(frozen=True)
class _Probed:
    """What the probes of one model did: shares of tokens right per example, and a curve over blocks."""

    right: dict[str, float]
    control: dict[str, float]
    curve: list[tuple[int, float]]
    layer: int
    classes: int


def _only(found: AnswerStates, tokens: Index) -> AnswerStates:
    """Keep the rows of these tokens, the first of each answer: what follows it often completes a word."""
    there = np.flatnonzero(np.isin(found.targets, tokens))
    here = there[np.unique(found.example[there], return_index=True)[1]]
    return AnswerStates(found.states[here], found.targets[here], found.example[here])


def _by_example(rows: Array, example: Index, ids: Sequence[str]) -> dict[str, float]:
    return {ids[e]: float(rows[example == e].mean()) for e in np.unique(example)}


_SCALARS = [
    Scalar("right", "Answer tokens read by a linear probe", "share", "high"),
    Scalar("right_control", "The same by probes of shuffled labels", "share"),
    Scalar("selectivity", "Selectivity", "difference of shares", "high"),
]
