"""Input gradients: do they point at what this kind of model learns from, so that attributions may be believed?

DiffROAR trains fresh copies on what is left of the inputs when only the coordinates of largest, and of smallest
gradient are kept: if gradients point at what matters, the first predict better. Methods that infer concepts by
gradients (``concept_poisoning``) rest on that being so. Where the examples say where their signal is (``signal_box``),
the share of the gradient that lies there is measured too.

Source: Shah et al. 2021, Do Input Gradients Highlight Discriminative Features? (arXiv:2102.12781).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from expunge.audits.base import Audit, AuditConfig, Estimate, Finding, Scalar, Table
from expunge.audits.intervals import mean_interval
from expunge.audits.observations import Observations
from expunge.errors import BadInput, Problem, collected
from expunge.requests.places import some
from expunge.tasks.attribution import Of, input_gradients
from expunge.tasks.examples import LabelledExamples
from expunge.tasks.predictor import Predictor
from expunge.training.adversarial import on_the_scale, trained_anew
from expunge.training.settings import TrainSettings

Array = NDArray[np.float64]
SIGNAL_BOX = "signal_box"
SIDES = ("top", "bottom")


def ranked(scores: Tensor, seed: int) -> Tensor:
    """(N, d) indices of each example's coordinates, the highest score first; ties are broken at random by seed."""
    flat = scores.flatten(1)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(flat.shape[1]))
    return order[flat[:, order].argsort(dim=1, descending=True, stable=True)]


def unmasked(inputs: Tensor, order: Tensor, fraction: float, fill: Tensor) -> Tensor:
    """Keep each example's first coordinates of an order and put ``fill`` into the place of all others.

    Args:
        inputs: (N, ...), d numbers per example.
        order: (N, d) indices.
        fraction: share of the d that is kept, rounded.
        fill: broadcasts to the inputs.
    """
    kept = order[:, : round(fraction * order.shape[1])]
    mask = torch.zeros(order.shape, dtype=torch.bool).scatter(1, kept, True).view(inputs.shape)
    return torch.where(mask, inputs, fill.expand_as(inputs))


def mass_inside(magnitude: Tensor, boxes: Sequence[Sequence[int]]) -> tuple[Array, NDArray[np.bool_]]:
    """Return (N,) the share of (N, H, W) magnitudes inside each box, and whether the largest one is."""
    share, hit = np.empty(len(boxes)), np.empty(len(boxes), dtype=bool)
    for i, (top, left, bottom, right) in enumerate(boxes):
        whole = magnitude[i]
        share[i] = float(whole[top:bottom, left:right].sum() / whole.sum().clamp_min(1e-30))
        row, column = divmod(int(whole.argmax()), whole.shape[1])
        hit[i] = top <= row < bottom and left <= column < right
    return share, hit


class InputGradients(Audit):
    """DiffROAR of a model's input gradients, with that of a random ranking as the control."""

    id = "input_gradients"
    title = "Do gradients point at what this kind of model learns from?"
    tasks: ClassVar[tuple[str, ...]] = ("image_classifier", "tabular_classifier")
    needs = ("retain",)
    default = False
    paper = "Shah et al. 2021, Do Input Gradients Highlight Discriminative Features? (arXiv:2102.12781)"

    class Config(AuditConfig):
        """Settings of the input-gradient audit. It trains 2 x fractions x repeats copies per model and control."""

        fractions: tuple[float, ...] = Field(
            (0.1, 0.25, 0.5), min_length=1, description="shares of the coordinates that are kept"
        )
        of: Of = Field("logit", description="gradient of the predicted class's logit, or of the loss at it")
        parity: bool = Field(
            False, description="rank by the given label's logit, as the released code does; that tells the label"
        )
        fill: Literal["mean", "zero"] = Field("mean", description="what stands in the place of the others")
        models: tuple[str, ...] = Field(
            (), description="which of the models; the original if it is there, otherwise the one under audit"
        )
        control: bool = Field(True, description="also rank at random, once; its DiffROAR is 0 but for chance")
        limit: int = Field(4000, ge=8, description="examples of the retain set at most, drawn by seed and id")
        test_share: float = Field(0.25, gt=0, lt=1, description="of them, those that the copies are tested on")
        repeats: int = Field(1, ge=1, description="copies per ranking and fraction, of different seeds")
        epochs: int = Field(10, ge=1, description="passes of each copy")
        batch_size: int = Field(64, ge=1, description="examples per step")
        learning_rate: float = Field(1e-3, gt=0, description="peak rate of AdamW with cosine decay")

        @field_validator("fractions")
        @classmethod
        def _shares(cls, fractions: tuple[float, ...]) -> tuple[float, ...]:
            if not all(0 < f < 1 for f in fractions) or len(set(fractions)) < len(fractions):
                raise ValueError("give different shares between 0 and 1, such as 0.1, 0.25")
            return fractions

    def prepare(self, seen: Observations) -> None:
        """Refuse names of models that are not there, and models that cannot be made anew."""
        problems = [
            Problem(f"audit {self.id}, models", f"'{name}' is not there", f"there are {', '.join(seen.models)}")
            for name in self.config.models
            if name not in seen.models
        ]
        for name in [n for n in self._chosen(seen) if n in seen.models]:
            with collected(problems):
                seen.models[name].fresh(0)
        if problems:
            raise BadInput(problems)

    def run(self, seen: Observations) -> Finding:
        config, names = self.config, self._chosen(seen)
        task: Predictor = seen.models[names[0]]
        encoded, boxes = self._examples(seen, task)
        train, test = self._split(encoded, seen.seed)
        if not train or not test:
            return Finding(self.id, "no data", note=f"{len(encoded)} examples cannot be split into train and test")
        fill = torch.zeros(())
        if config.fill == "mean":
            fill = self._mean(encoded.take(train))
        scores = {name: self._gradients(seen.models[name], encoded).abs() for name in names}
        rankings = {name: ranked(s, seen.seed) for name, s in scores.items()}
        if config.control:
            luck = torch.Generator().manual_seed(seen.seed)
            rankings["random"] = ranked(torch.rand(next(iter(scores.values())).shape, generator=luck), seen.seed)
        power, copies = {}, 0
        for name, order in rankings.items():
            maker = seen.models.get(name, task)
            for fraction in config.fractions:
                for side in SIDES:
                    kept = unmasked(self._inputs(encoded), order if side == "top" else order.flip(1), fraction, fill)
                    power[name, fraction, side], cost = self._power(
                        maker, replace(encoded, inputs=kept), train, test, seen
                    )
                    seen.spend(name if name in seen.models else names[0], cost)
                    copies += config.repeats
        estimates = {name: self._estimates(name, power, seen.seed) for name in names}
        scalars = [Scalar(f"diffroar_{f:g}", f"DiffROAR, {f:.0%} kept", "accuracy") for f in config.fractions]
        if boxes is not None:
            scalars += [
                Scalar("signal_mass", "Gradient inside the known signal", "share"),
                Scalar("signal_top", "Largest gradient inside the known signal", "share"),
            ]
            for name in names:
                mass, hit = mass_inside(
                    scores[name].flatten(1, -3).sum(1) if scores[name].dim() == 4 else scores[name], boxes
                )
                estimates[name]["signal_mass"] = mean_interval(mass.tolist(), seed=seen.seed)
                estimates[name]["signal_top"] = mean_interval(hit.astype(float).tolist(), seed=seen.seed)
        return Finding(
            self.id,
            scalars=scalars,
            estimates=estimates,
            tables=[self._table(power)],
            attempted={
                "examples trained on": len(train),
                "examples tested on": len(test),
                "copies trained": copies,
                "epochs": config.epochs,
                "learning rate": config.learning_rate,
            },
            note=self._verdict(names, estimates, power),
        )

    # ---- pieces ----------------------------------------------------------------------------------------------------

    def _chosen(self, seen: Observations) -> tuple[str, ...]:
        return self.config.models or (("original",) if "original" in seen.models else ("unlearned",))

    def _examples(self, seen: Observations, task: Predictor) -> tuple[LabelledExamples, list[list[int]] | None]:
        """The retain set on the scale of fractions, and its boxes if it has any."""
        examples = seen.examples.dataset("retain")
        ids = list(examples["id"])
        chosen = sorted(sorted(range(len(ids)), key=lambda i: _luck(seen.seed, "limit", ids[i]))[: self.config.limit])
        examples = examples.select(chosen)
        boxes = None
        if SIGNAL_BOX in examples.column_names:
            boxes = [list(box) for box in examples[SIGNAL_BOX]]
            if wrong := [i for i, box in enumerate(boxes) if len(box) != 4]:
                what = f"holds no [top, left, bottom, right] in rows {some(wrong)}"
                raise BadInput(Problem(f"column '{SIGNAL_BOX}'", what, "give four numbers in every row"))
        return on_the_scale(task.encode(examples)), boxes

    def _split(self, encoded: LabelledExamples, seed: int) -> tuple[list[int], list[int]]:
        order = sorted(range(len(encoded)), key=lambda i: _luck(seed, "test", encoded.ids[i]))
        count = round(self.config.test_share * len(order))
        return sorted(order[count:]), sorted(order[:count])

    def _inputs(self, encoded: LabelledExamples) -> Tensor:
        assert isinstance(encoded.inputs, Tensor)
        return encoded.inputs

    def _mean(self, encoded: LabelledExamples) -> Tensor:
        """Mean per channel of images, per column of tables."""
        inputs = self._inputs(encoded)
        return inputs.mean((0, *range(2, inputs.dim()))).view(-1, *[1] * (inputs.dim() - 2))

    def _gradients(self, model: Predictor, encoded: LabelledExamples) -> Tensor:
        if not self.config.parity:
            with model.asked():
                step = max(1, model.tokens_per_forward)
                parts = [encoded.take(range(k, min(k + step, len(encoded)))) for k in range(0, len(encoded), step)]
                said = torch.cat([model.statistics(part).logits.argmax(-1).cpu() for part in parts])
            encoded = encoded.with_targets(said)
        return input_gradients(model, encoded, self.config.of)

    def _power(
        self, task: Predictor, encoded: LabelledExamples, train: list[int], test: list[int], seen: Observations
    ) -> tuple[dict[str, float], Any]:
        """Example id -> share of the copies that predict it; and what the copies cost."""
        config, right, spent = self.config, np.zeros(len(test)), None
        for repeat in range(config.repeats):
            settings = TrainSettings(
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                warmup=0.1,
                schedule="cosine",
                weight_decay=0.0,
                seed=seen.seed * 1009 + repeat,
            )
            copy = trained_anew(task, encoded.take(train), settings)
            right += copy.observe(encoded.take(test)).correct / config.repeats
            spent = copy.cost if spent is None else spent + copy.cost
        return dict(zip([encoded.ids[i] for i in test], right.tolist(), strict=True)), spent

    def _estimates(self, name: str, power: Mapping[Any, Mapping[str, float]], seed: int) -> dict[str, Estimate]:
        found = {}
        for fraction in self.config.fractions:
            top, bottom = (power[name, fraction, side] for side in SIDES)
            found[f"diffroar_{fraction:g}"] = mean_interval([top[i] - bottom[i] for i in sorted(top)], seed=seed)
        return found

    def _table(self, power: Mapping[Any, Mapping[str, float]]) -> Table:
        rows = []
        for name, fraction in dict.fromkeys((n, f) for n, f, _ in power):
            top, bottom = (float(np.mean(list(power[name, fraction, side].values()))) for side in SIDES)
            rows.append((name, f"{fraction:.0%}", round(top, 4), round(bottom, 4), round(top - bottom, 4)))
        columns = ("ranked by the gradients of", "kept", "largest kept", "smallest kept", "DiffROAR")
        return Table("Accuracy of copies trained on what is kept", columns, rows)

    def _verdict(
        self, names: Sequence[str], estimates: Mapping[str, Mapping[str, Estimate]], power: Mapping[Any, Any]
    ) -> str:
        said = []
        for name in names:
            found = [estimates[name][f"diffroar_{f:g}"] for f in self.config.fractions]
            above = [e.low is not None and e.low > 0 for e in found]
            below = [e.high is not None and e.high < 0 for e in found]
            if all(above):
                words = "point at what it learns from"
            elif any(below):
                words = "point away from what it learns from: do not trust attributions"
            else:
                words = "do not reliably point at what it learns from: do not trust attributions"
            said.append(f"gradients of '{name}' {words}")
        return "; ".join(said) + ". Intervals are over test examples; copies of other seeds vary more."


def _luck(seed: int, what: str, identity: str) -> bytes:
    return hashlib.blake2b(f"{seed}\x1f{what}\x1f{identity}".encode(), digest_size=8).digest()
