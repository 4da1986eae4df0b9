"""SalUn: random labels, learned by the weights that matter to the forget set alone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from expunge.methods.base import MethodConfig, Run, Unlearned
from expunge.methods.general.random_label import RandomLabel, RandomLabelConfig
from expunge.methods.terms import RetainLoss
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.training.settings import SelectSettings


class SalUnConfig(RandomLabelConfig):
    """Hyperparameters of SalUn; defaults of the paper."""

    share: float = Field(0.5, gt=0, le=1, description="share of the weights that may move, the most salient ones")
    retain: RetainLoss = Field("nll", description="loss on the retain set: none, nll, or kl")
    exclude_true_label: bool | None = Field(
        True, description="never draw the true label, as the paper says; the code draws among all"
    )
    resample: Literal["once", "epoch"] = Field(
        "epoch", description="draw labels anew in every epoch, or each once and keep it"
    )


class SalUn(RandomLabel):
    """L = gamma CE(random label) + alpha CE(retain), theta = m * theta + (1 - m) * theta_0.

    The mask m holds the ``share`` of all weights with the largest ``|d CE(forget) / d theta|`` in the model before
    unlearning. Everything outside stays bitwise as it was; the authors' code before 2026 masked gradients alone, and
    weight decay moved the rest. It is ``random_label`` with ``select.by=saliency``, and any other objective takes that
    selection too; another ``select.by`` given here is used in its place.

    Source: Fan et al. 2024, arXiv 2310.12508, section 4.
    """

    id = "salun"
    title = "random labels, learned by the weights that matter to the forget set"
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Fan et al. 2024, SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency, arXiv:2310.12508"
    Config: ClassVar[type[MethodConfig]] = SalUnConfig

    def apply(self, task: Task, request: DeletionRequest, run: Run) -> Unlearned:
        """Confine the training to the salient weights, unless adapters or another selection are asked for."""
        if run.train.select is None and run.train.lora is None:
            select = SelectSettings(by="saliency", share=self.config.share)
            run = replace(run, train=run.train.model_copy(update={"select": select}))
        return super().apply(task, request, run)
