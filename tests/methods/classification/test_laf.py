from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from expunge.errors import BadInput
from expunge.methods.classification.laf import Autoencoder, Density, LAFConfig, alignment_loss, bounded, fit, vae_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.predictor import Predictor

SETTINGS = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "latent": 3, "vae_epochs": 2}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_alignment_loss_is_its_definition() -> None:
    retain, before, forget, gone = (numbers(n, 4, seed=s) for s, n in enumerate((5, 5, 3, 3)))

    def c(a: Tensor, b: Tensor) -> float:
        return 1 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    away = math.log(sum(math.exp(c(forget[j], gone[j]) / 5.0) for j in range(3)))
    expected = [c(retain[i], before[i]) - away for i in range(5)]
    found = alignment_loss(retain, before, forget, gone, 5.0)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_aligning_pulls_what_is_kept_back_and_pushes_what_is_forgotten_away() -> None:
    retain, before, forget, gone = (numbers(n, 4, seed=s) for s, n in enumerate((5, 5, 3, 3)))
    retain.requires_grad_(True)
    forget.requires_grad_(True)
    alignment_loss(retain, before, forget, gone, 5.0).mean().backward()
    assert retain.grad is not None
    assert forget.grad is not None
    with torch.no_grad():
        step = [
            torch.nn.functional.cosine_similarity(r - 0.1 * r.grad, b) for r, b in ((retain, before), (forget, gone))
        ]  # type: ignore[operator]
        still = [torch.nn.functional.cosine_similarity(r, b) for r, b in ((retain, before), (forget, gone))]
    assert (step[0] > still[0]).all()
    assert (step[1] < still[1]).all()


def test_the_autoencoder_loss_is_reconstruction_and_divergence_of_two_normals() -> None:
    e, v, mean, deviation = numbers(6, 4), numbers(6, 4, seed=1), numbers(6, 2, seed=2), numbers(6, 2, seed=3).exp()
    divergence = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, deviation), torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    )
    expected = ((v - e) ** 2).sum() / 6 + 0.3 * divergence.sum() / 6
    torch.testing.assert_close(vae_loss(e, v, mean, deviation, 0.3), expected.double(), atol=1e-6, rtol=1e-6)


def test_bounded_grows_from_one_to_e() -> None:
    found = bounded(torch.tensor([0.0, 1.0, 1e9]))
    torch.testing.assert_close(found, torch.tensor([1.0, math.exp(0.5), math.e]))


@pytest.mark.parametrize("parity", [False, True])
def test_a_density_is_nearer_to_what_it_was_fitted_to(parity: bool) -> None:
    data = numbers(200, 6).float() * 0.1 + torch.tensor([0.1, 0.9, 0.5, 0.2, 0.8, 0.4])
    config = LAFConfig(latent=2, vae_epochs=40, kl_weight=1e-3, parity=parity)
    density = fit(data, torch.zeros(6), torch.ones(()), config, 0)
    silent = torch.zeros(200, 2)
    here, there = density.distance(data, silent), density.distance(data + 1.0, silent)
    assert here.mean() < 0.2 * there.mean()
    assert torch.equal(fit(data, torch.zeros(6), torch.ones(()), config, 0).distance(data, silent), here)
    assert not any(p.requires_grad for p in density.autoencoder.parameters())
    assert density.summed is parity
    if parity:
        assert float(density.autoencoder(data * 100, silent)[0].max()) <= 1.0


def test_the_distance_is_that_of_scaled_embeddings() -> None:
    autoencoder, e, noise = Autoencoder(4, 2), numbers(5, 4).float(), numbers(5, 2, seed=1).float()
    centre, scale = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(2.0)
    scaled = (e - centre) / 2
    expected = (autoencoder(scaled, noise)[0] - scaled) ** 2
    torch.testing.assert_close(Density(autoencoder, centre, scale).distance(e, noise), expected.mean(1))
    torch.testing.assert_close(Density(autoencoder, centre, scale, True).distance(e, noise), expected.sum(1))


def relabelled(rows: Dataset, label: str) -> Dataset:
    return rows.map(lambda _: {"label": label})


@pytest.mark.parametrize("name", ["resnet", "table", "bert"])
def test_no_label_is_read(tiny_predictor: Any, tiny_rows: Any, name: str) -> None:
    rows = tiny_rows(name, range(6)), tiny_rows(name, range(10, 30))
    one = unlearn(tiny_predictor(name), DeletionRequest(*rows), "laf", settings=SETTINGS).model
    other = unlearn(
        tiny_predictor(name), DeletionRequest(*(relabelled(r, "bee") for r in rows)), "laf", settings=SETTINGS
    ).model
    pairs = list(zip(one.named_parameters(), other.named_parameters(), strict=True))
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_the_head_and_batch_statistics_stay_as_they_were(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    request = DeletionRequest(tiny_rows("resnet", range(6)), tiny_rows("resnet", range(10, 30)))
    done = unlearn(task, request, "laf", settings=SETTINGS)
    before, after = task.model.state_dict(), done.model.model.state_dict()
    head = set(task.head_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert head | {name for name in before if "running" in name} <= same
    assert {name for name in before if "weight" in name} - head - same


def turned(task: Predictor, new: Any, rows: Dataset) -> float:
    """Mean cosine between the embeddings before and after."""
    encoded = task.encode(rows)
    with torch.no_grad():
        one, two = (m.statistics(encoded, hidden=True).hidden for m in (task, new))
    return float(torch.nn.functional.cosine_similarity(one, two).mean())


@pytest.mark.parametrize("part", [{}, {"align_weight": 0.0}, {"unlearn_weight": 0.0}])
def test_what_is_forgotten_leaves_more_than_what_is_kept(tiny_predictor: Any, tiny_rows: Any, part: Any) -> None:
    rows = tiny_rows("table", range(60))
    forget = rows.filter(lambda r: r["label"] == "ant")
    keep = rows.filter(lambda r: r["label"] != "ant")
    request = DeletionRequest(forget, keep, scenario="class")
    task = unlearn(
        tiny_predictor("table"), DeletionRequest(tiny_rows("table", range(90, 96)), rows), "retrain",
        settings={"epochs": 20, "learning_rate": 1e-2},
    ).model  # fmt: skip
    settings = {**SETTINGS, "epochs": 30, "temperature": 1.0, "unlearn_rate": 0.5, "vae_epochs": 20, **part}
    done = unlearn(task, request, "laf", settings=settings)
    assert done.training is not None
    first, last = done.training.history[0], done.training.history[-1]
    assert ("loss/align" in first) is ("align_weight" not in part)
    assert ("loss/leave_forget" in first) is ("unlearn_weight" not in part)
    if "align_weight" not in part:
        assert turned(task, done.model, forget) < turned(task, done.model, keep) - 0.05
    if "unlearn_weight" not in part:
        # The forget set has moved off its own autoencoder by more than what is kept off its own.
        assert (
            first["loss/leave_forget"] - last["loss/leave_forget"]
            > last["loss/leave_retain"] - first["loss/leave_retain"] + 0.05
        )


def test_repair_trains_the_head_alone(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    plain = unlearn(task, request, "laf", settings=SETTINGS).model
    repaired = unlearn(task, request, "laf", settings={**SETTINGS, "repair_epochs": 5}).model
    head = set(task.head_parameters())
    moved = {
        name
        for (name, a), (_, b) in zip(plain.named_parameters(), repaired.named_parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert moved == head


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unlearn_weight": 0.0, "align_weight": 0.0}, "both 0"),
        ({"repair_epochs": 1, "lora.rank": 2}, "adapters leave the head"),
        ({"repair_epochs": 1, "select.by": "random", "select.parameters": "^1"}, "every weight that is to be trained"),
    ],
)
def test_what_cannot_work_is_refused(tiny_predictor: Any, tiny_rows: Any, settings: Any, message: str) -> None:
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(10, 30)))
    with pytest.raises(BadInput, match=message):
        unlearn(tiny_predictor("table"), request, "laf", settings={**SETTINGS, **settings})


def test_a_model_without_a_linear_head_is_refused(tiny_rows: Any) -> None:
    class Sums(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filters = torch.nn.Conv2d(3, 3, 3)

        def forward(self, pixels: Tensor) -> Tensor:
            return self.filters(pixels).mean((2, 3))

    task = Predictor.of_images(Sums(), ("ant", "bee", "cat"))
    request = DeletionRequest(tiny_rows("module", range(6)), tiny_rows("module", range(10, 30)))
    with pytest.raises(BadInput, match="linear head"):
        unlearn(task, request, "laf")


def test_a_model_of_double_precision_is_served(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("table")
    request = DeletionRequest(tiny_rows("table", range(6)), tiny_rows("table", range(6, 18)))
    runs = []
    for dtype in (torch.float32, torch.float64):
        task.model.to(dtype)
        runs.append(unlearn(task, request, "laf", settings={"max_steps": 2, "vae_epochs": 1}).model)
    one, other = (dict(run.named_parameters()) for run in runs)
    for name, p in one.items():
        torch.testing.assert_close(other[name].float(), p, atol=1e-5, rtol=1e-5)
