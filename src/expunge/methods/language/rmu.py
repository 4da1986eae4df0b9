"""RMU: steer what a block says about the forget set to a random direction, and hold it still on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from expunge.errors import BadInput, Problem, collected
from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.methods.terms import RetainConfig
from expunge.requests.request import DeletionRequest
from expunge.selections.base import Mask
from expunge.tasks.base import Task
from expunge.tasks.blocks import decoder_blocks, feed_forward_outputs
from expunge.tasks.encoding import Positions
from expunge.tasks.statistics import IGNORED, Statistics
from expunge.training.objective import Objective, Term
from expunge.training.plan import draw

LAYER = 7


class RMUConfig(RetainConfig):
    """Hyperparameters of RMU; defaults of open-unlearning's class (its TOFU recipe: steering 2, trained all)."""

    layer: int | None = Field(
        None, ge=0, description="block whose output is steered, from 0; 7, or the middle one of fewer than 16 blocks"
    )
    steering: float = Field(20.0, gt=0, description="length of the random vector that forget rows are moved to (c)")
    trained: Literal["down_proj", "all"] = Field(
        "down_proj",
        description="down_proj trains the feed-forward output matrix of a few blocks, all every weight up to the "
        "layer; where lora or select is given, that decides instead",
    )
    trained_layers: tuple[int, ...] = Field(
        (), description="blocks whose down projections train; the layer and the two before it if not given"
    )
    retain: Literal["none", "hidden", "nll", "kl"] = Field(  # type: ignore[assignment]
        "hidden", description="loss on the retain set: hidden holds the block's output still; or none, nll, kl"
    )
    positions: Literal["answer", "attended", "all"] = Field(
        "answer",
        description="rows that are steered and held: answer (those that predict one of its tokens), attended (every "
        "token, the paper's formula on running text) or all (padding too, the authors' code for WMDP)",
    )
    parity: bool = Field(
        False,
        description="reproduce open-unlearning: the answer tokens' own rows, one position late, and every example's "
        "sum divided by every other one's length; and KL over all positions",
    )

    @model_validator(mode="after")
    def _one_reference(self) -> RMUConfig:
        if self.parity and self.positions != "answer":
            raise ValueError("parity has rows of its own -> leave out parity or positions")
        return self


def control_vector(size: int, steering: float, seed: int) -> Tensor:
    """Return the random direction: ``steering * u / |u|`` with u uniform on [0, 1)^size; (size,) float32.

    Args:
        size: of the residual stream.
        steering: its length.
        seed: what it follows from alone.
    """
    generator = torch.Generator().manual_seed(draw(seed, "control vector") % 2**63)
    direction = torch.rand(size, generator=generator)
    return steering * direction / direction.norm()


def rmu_loss(hidden: Tensor, target: Tensor, example: Tensor, counts: Tensor) -> Tensor:
    """Per-example RMU loss ``(1 / n_b) sum_t mean_d (h_td - g_td)^2``.

    Args:
        hidden: (R, H) block outputs of the model being trained.
        target: what they are moved to: (H,) the control vector, or (R, H) what they were before unlearning.
        example: (R,) which example a row belongs to.
        counts: (B,) rows per example.

    Returns:
        (B,) losses in float32 or better; their mean is the objective.
    """
    return _sums(hidden, target, example, len(counts)) / counts


def _sums(hidden: Tensor, target: Tensor, example: Tensor, examples: int) -> Tensor:
    """(B,) squared distances, averaged over dimensions and summed over each example's rows."""
    squared = _distance(hidden, target)
    return torch.zeros(examples, dtype=squared.dtype, device=hidden.device).index_add(0, example, squared)


def _distance(hidden: Tensor, target: Tensor) -> Tensor:
    precise = torch.promote_types(hidden.dtype, torch.float32)
    return (hidden.to(precise) - target.to(precise)).square().mean(-1)


def rmu_reference_loss(hidden: Tensor, target: Tensor, labels: Tensor) -> Tensor:
    """RMU as open-unlearning computes it on a padded batch; a scalar.

    Its mask is ``labels != -100`` without a shift, and a (B,) sum divided by (B, 1) lengths makes (B, B) numbers:
    the mean of them is ``mean_i(s_i) mean_j(1 / n_j)``, which is the definition for B = 1 alone. An example without a
    label makes it NaN.

    Args:
        hidden: (B, T, H).
        target: (H,), or (B, T, H).
        labels: (B, T) int64; -100 where there is no label.
    """
    mask = labels != IGNORED
    return ((_distance(hidden, target) * mask).sum(1) / mask.sum(1, keepdim=True)).mean()


class RMU(ObjectiveMethod):
    """L = gamma mean_b rmu_loss(h, c u) + alpha mean_b rmu_loss(h, h_ref) over the rows of ``positions``.

    h is the output of one block, u a random unit vector with no negative entry, drawn once from the run's seed; h_ref
    is what the block gave out before unlearning. Nothing above that block is run, and the frozen outputs are computed
    once. Per example the rows are averaged, then examples.

    ``parity=True`` reproduces open-unlearning (``rmu_reference_loss``), per micro-batch. The authors' own code, for
    WMDP, is ``positions=all, retain_weight=100``, but for padding: rows of padding are part of its means, and it pads
    on the left. The coefficient and the layer decide how much is forgotten: see the length of the block's outputs
    before choosing ``steering``.

    Source: Li et al. 2024, arXiv 2403.03218, section 4; ``RMU`` of open-unlearning.
    """

    id = "rmu"
    title = "steer a block's output on the forget set to a random direction, hold it on the retain set"
    paper = "Li et al. 2024, The WMDP Benchmark: Measuring and Reducing Malicious Use with Unlearning, arXiv:2403.03218"
    train_defaults: ClassVar[Mapping[str, Any]] = {}
    Config: ClassVar[type[MethodConfig]] = RMUConfig

    def check(self, task: Task, request: DeletionRequest) -> None:
        """Refuse also layers that the model does not have, or that no gradient reaches.

        Raises:
            BadInput: every problem.
        """
        problems: list[Problem] = []
        with collected(problems):
            super().check(task, request)
        if task.kind in self.tasks:
            problems += self._layer_problems(task)
        if problems:
            raise BadInput(problems)

    def _layer_problems(self, task: Task) -> list[Problem]:
        try:
            count = len(decoder_blocks(task.model))
            layer = self.layer(count)
            if layer >= count:
                what = f"{layer} is not there: the model has {count} blocks"
                return [Problem(f"method {self.id}: layer", what, f"give one from 0 to {count - 1}")]
            problems = [
                Problem(
                    f"method {self.id}: trained_layers",
                    f"{number} does not come before the end of block {layer}, which is read",
                    f"give some from 0 to {layer}",
                )
                for number in self.config.trained_layers
                if not 0 <= number <= layer
            ]
            if not problems and self.config.trained == "down_proj":
                for number in self._trained_layers(layer):
                    feed_forward_outputs(task.model, number)
        except BadInput as error:
            return list(error.problems)
        return problems

    def layer(self, blocks: int) -> int:
        """The block that is steered in a model of so many."""
        chosen: int | None = self.config.layer
        return min(LAYER, (blocks - 1) // 2) if chosen is None else chosen

    def _trained_layers(self, layer: int) -> tuple[int, ...]:
        return self.config.trained_layers or tuple(range(max(0, layer - 2), layer + 1))

    def objective(self) -> Objective:
        """The terms on a model of 16 blocks or more, with the control vector of seed 0."""
        return self._terms(self.layer(16), 0)

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """The terms on this model's layer, with the control vector of the run's seed."""
        return self._terms(self.layer(len(decoder_blocks(task.model))), run.train.seed)

    def _terms(self, layer: int, seed: int) -> Objective:
        config = self.config
        positions: Positions = "label" if config.parity else config.positions

        def loss(stats: Statistics, target: Tensor) -> Tensor:
            if not config.parity:
                rows = torch.bincount(stats.example, minlength=len(stats))
                return rmu_loss(stats.blocks[layer], target, stats.example, rows)
            sums = _sums(stats.blocks[layer], target, stats.example, len(stats))
            return (sums[:, None] / stats.counts).mean(1)

        def steer(forget: Statistics) -> Tensor:
            hidden = forget.blocks[layer]
            return loss(forget, control_vector(hidden.shape[-1], config.steering, seed).to(hidden.device))

        def hold(retain: Statistics) -> Tensor:
            return loss(retain, retain.reference_blocks[layer])

        forget = Term(
            "rmu", ("forget",), steer, "example_mean", config.forget_weight, positions=positions, blocks=(layer,)
        )
        if config.retain != "hidden":
            return Objective((forget, *config.retain_terms()))
        retain = Term(
            "retain_hidden", ("retain",), hold, "example_mean", config.retain_weight,
            reference="rows", positions=positions, blocks=(layer,),
        )  # fmt: skip
        return Objective((forget, retain))

    def confined(self, model: Task) -> Mask | None:
        """The named matrices."""
        if self.config.trained != "down_proj":
            return None
        blocks = self._trained_layers(self.layer(len(decoder_blocks(model.model))))
        chosen = {id(p) for number in blocks for p in feed_forward_outputs(model.model, number).values()}
        return dict.fromkeys(name for name, p in model.named_parameters() if id(p) in chosen)
