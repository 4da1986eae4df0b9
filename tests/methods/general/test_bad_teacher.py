from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.methods.general.bad_teacher import teaching_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.training.plan import draw


def test_the_loss_is_the_divergence_from_the_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    q, log_p = torch.softmax(teacher / 2, -1), torch.log_softmax(student / 2, -1)
    torch.testing.assert_close(teaching_loss(student, teacher, 2.0), (q * (q.log() - log_p)).sum(-1))
    (gradient,) = torch.autograd.grad(teaching_loss(student, teacher, 2.0).sum(), student)
    torch.testing.assert_close(gradient, (log_p.exp() - q) / 2)
    assert (teaching_loss(teacher, teacher, 1.0).abs() < 1e-12).all()


@pytest.mark.parametrize("name", ["table", "resnet", "table-regressor"])
def test_it_comes_nearer_to_the_ignorant_teacher_on_the_forget_set_alone(
    tiny_predictor: Any, tiny_rows: Any, name: str
) -> None:
    task = tiny_predictor(name)
    request = DeletionRequest(tiny_rows(name, range(6)), tiny_rows(name, range(10, 30)))
    settings = {"epochs": 30, "learning_rate": 5e-3, "retain_share": 1.0, "warmup": 0.0}
    new = unlearn(task, request, "bad_teacher", settings=settings).model
    ignorant = task.fresh(draw(0, "ignorant teacher") % 2**31)

    def outputs(model: Any, role: str) -> torch.Tensor:
        model.model.eval()
        with torch.no_grad():
            return model.statistics(model.encode(getattr(request, role))).logits  # type: ignore[no-any-return]

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).square().mean() if "regressor" in name else teaching_loss(a, b, 1.0).mean())

    bad = outputs(ignorant, "forget")
    assert distance(outputs(new, "forget"), bad) < distance(outputs(task, "forget"), bad)
    kept = outputs(task, "retain")
    assert distance(outputs(new, "retain"), kept) < distance(outputs(ignorant, "retain"), kept)


def test_parity_divides_by_the_classes(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    first = []
    for parity in (False, True):
        done = unlearn(tiny_predictor("table"), request, "bad_teacher", settings={"parity": parity})
        assert done.training is not None
        first.append(done.training.history[0]["loss"])
    assert first[1] == pytest.approx(first[0] / 3, rel=1e-5)


def test_a_share_of_the_retain_set_is_read_whatever_its_order(tiny_predictor: Any, tiny_rows: Any) -> None:
    from expunge.methods.general.bad_teacher import BadTeacher

    rows = tiny_rows("table", range(10, 30))
    task, method = tiny_predictor("table"), BadTeacher()
    chosen = method.examples("retain", task, DeletionRequest(tiny_rows("table", range(4)), rows))
    again = method.examples(
        "retain", task, DeletionRequest(tiny_rows("table", range(4)), rows.select(range(19, -1, -1)))
    )
    assert len(chosen) == 6
    assert set(chosen["id"]) == set(again["id"])
