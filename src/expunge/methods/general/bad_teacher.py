"""Bad teacher: learn from an ignorant teacher on the forget set, from the original model on the retain set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat
from torch import Tensor

from expunge.methods.base import MethodConfig, ObjectiveMethod, Run
from expunge.requests.request import DeletionRequest
from expunge.tasks.base import Task
from expunge.tasks.kinds import KINDS
from expunge.tasks.statistics import RegressionStatistics, Statistics
from expunge.training.objective import Objective, Term, row_kl
from expunge.training.plan import draw


class BadTeacherConfig(MethodConfig):
    """Hyperparameters of bad teaching; defaults of the authors."""

    temperature: PositiveFloat = Field(1.0, description="both teachers and the student are divided by it")
    retain_share: float = Field(
        0.3, gt=0, le=1, description="share of the retain set that is read, drawn by id, the same for all seeds"
    )
    parity: bool = Field(
        False, description="reproduce the reference: the divergence averaged over classes too, 1 / C of ours"
    )


def teaching_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return (R,) ``KL(softmax(teacher / T) || softmax(student / T))`` in nats, without a factor T^2.

    Args:
        student, teacher: (R, C) logits; the gradient reaches the student only.
        temperature: T.
    """
    return row_kl(student / temperature, teacher.detach() / temperature)


class BadTeacher(ObjectiveMethod):
    """L = 1/2 mean_{x in forget} KL(b(x) || f(x)) + 1/2 mean_{x in retain} KL(f_0(x) || f(x)), over labelled rows.

    For classifiers, of which both sets have as many rows in a step, that is the authors' mean over both together.
    b has fresh weights of the same architecture, by the run's seed: it knows nothing. f_0 is the model before
    unlearning. Labels are not read. As in the authors' code a share of the retain set is used; every example to forget
    meets one retain example per step. For numbers the divergence is the mean squared distance of the outputs.

    The reference divides by the number of classes as well (``parity=True``).

    Source: Chundawat et al. 2023, Can Bad Teaching Induce Forgetting? (arXiv 2205.08096), section 4.
    """

    id = "bad_teacher"
    title = "learn from an ignorant teacher on the forget set, from the original on the retain set"
    tasks: ClassVar[tuple[str, ...]] = KINDS
    needs: ClassVar[tuple[str, ...]] = ("retain",)
    paper = "Chundawat et al. 2023, Can Bad Teaching Induce Forgetting?, arXiv:2205.08096"
    train_defaults: ClassVar[Mapping[str, Any]] = {"learning_rate": 1e-4, "epochs": 1, "weight_decay": 0.0}
    Config: ClassVar[type[MethodConfig]] = BadTeacherConfig

    def objective(self) -> Objective:
        """Both divergences; what is taught on the forget set is only known with the model."""
        return self._terms(None)

    def objective_for(self, task: Task, request: DeletionRequest, run: Run) -> Objective:
        """Both divergences, with an ignorant teacher of this model's architecture."""
        return self._terms(task.fresh(draw(run.train.seed, "ignorant teacher") % 2**31))

    def _terms(self, teacher: Task | None) -> Objective:
        temperature, parity = self.config.temperature, self.config.parity

        def distance(stats: Statistics, taught: Any) -> Tensor:
            target = taught(slice(None))
            if isinstance(stats, RegressionStatistics):
                return (stats.logits - target.detach()).square().mean(-1)
            loss = teaching_loss(stats.logits, target, temperature)
            return loss / stats.logits.shape[-1] if parity else loss

        def forget(stats: Statistics) -> Tensor:
            return distance(stats, stats.teacher_logits)

        def retain(stats: Statistics) -> Tensor:
            return distance(stats, stats.reference_logits)

        return Objective(
            (
                Term("ignorance", ("forget",), forget, "token_mean", 0.5, reference="teacher"),
                Term("competence", ("retain",), retain, "token_mean", 0.5, reference="rows"),
            ),
            teacher=teacher,
        )

    def required(self) -> tuple[str, ...]:
        """The retain set."""
        return ("retain",)

    def examples(self, stream: Any, task: Task, request: DeletionRequest) -> Any:
        """The forget set, and the share of the retain set that is read."""
        found = super().examples(stream, task, request)
        if stream != "retain" or self.config.retain_share == 1:
            return found
        order = sorted(range(len(found)), key=lambda i: draw("bad teacher", found[i]["id"]))
        return found.select(sorted(order[: max(1, round(self.config.retain_share * len(found)))]))
