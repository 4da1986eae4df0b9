from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.general.scrub import Scrub, ScrubConfig, distillation
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest


def test_the_distillation_by_an_independent_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    library = torch.nn.functional.kl_div(
        torch.log_softmax(student / 3, -1), torch.softmax(teacher / 3, -1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(distillation(student, teacher, 3.0), 9 * library)
    (gradient,) = torch.autograd.grad(distillation(student, teacher, 3.0).sum(), student)
    torch.testing.assert_close(gradient, 3 * (torch.softmax(student / 3, -1) - torch.softmax(teacher / 3, -1)))


def test_at_the_original_there_is_no_gradient() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(-distillation(logits, logits.detach(), 2.0).sum(), logits)
    assert gradient.abs().max() < 1e-6


def test_the_first_rounds_go_over_both_sets(tiny_predictor: Any) -> None:
    from expunge.methods.base import Run

    stages = Scrub(ScrubConfig(passes=4, max_passes=2)).stages(tiny_predictor("table"), Run())
    assert [s.name for s in stages] == ["forget", "retain", "forget", "retain", "retain", "retain"]
    assert len({s.settings["seed"] for s in stages}) == len(stages)


@pytest.mark.parametrize("name", ["table", "table-regressor"])
def test_it_leaves_the_forget_set_and_stays_with_the_retain_set(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    task = tiny_predictor(name)
    others = tiny_rows(name, range(30)).select([i for i in range(30) if i % 3 != 1])
    request = DeletionRequest(tiny_rows(name, range(1, 28, 3)), others)  # one kind, which can be told from the others
    everything = DeletionRequest(tiny_rows(name, range(90, 92)), tiny_rows(name, range(30)))
    fitting = {"epochs": 80, "learning_rate": 1e-2, "warmup": 0.0}
    task = unlearn(task, everything, "finetune", settings=fitting).model
    settings = {"passes": 12, "max_passes": 11, "learning_rate": 1e-2, "batch_size": 6, "gamma": 0.1, "alpha": 1.0}
    new = unlearn(task, request, "scrub", settings=settings).model

    def moved(role: str) -> float:
        with torch.no_grad():
            was, now = (m.statistics(m.encode(getattr(request, role))).logits for m in (task, new))
        return float((was - now).square().mean() if "regressor" in name else distillation(now, was, 1.0).mean())

    assert moved("forget") > (1.2 if "regressor" in name else 2) * moved("retain")


def test_nothing_to_keep_is_refused(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 40)))
    with pytest.raises(BadInput, match="nothing is kept"):
        unlearn(tiny_predictor("table"), request, "scrub", settings={"alpha": 0, "gamma": 0})
