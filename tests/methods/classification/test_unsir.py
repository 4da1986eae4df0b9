from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from expunge.data import known_sets, scenarios
from expunge.errors import BadInput
from expunge.methods.base import Run, settle
from expunge.methods.classification.unsir import Unsir, make_noise, noise_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

SMALL = {"noise_images": 8, "noise_repeats": 3, "noise_steps": 30}


def of_class(rows: Dataset, *labels: str) -> tuple[Dataset, Dataset]:
    return rows.filter(lambda r: r["label"] in labels), rows.filter(lambda r: r["label"] not in labels)


def asked(rows: Any, name: str, *labels: str) -> DeletionRequest:
    return DeletionRequest(*of_class(rows(name, range(60)), *(labels or ("ant",))), scenario="class")


def accuracy(task: Any, rows: Dataset) -> float:
    encoded = task.encode(rows)
    with torch.no_grad():
        return float((task.statistics(encoded).logits.argmax(-1) == encoded.targets).float().mean())


def test_the_loss_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 2, 5, 5, generator=generator, dtype=torch.float64)
    entropy = -sum(float(logits[b].log_softmax(0)[2]) for b in range(4)) / 4
    length = sum(float(noise[b, c, i, j]) ** 2 for b in range(4) for c in range(2) for i in range(5) for j in range(5))
    assert float(noise_loss(logits, noise, 2, 0.3)) == pytest.approx(-entropy + 0.3 * length / 4)


def test_the_noise_follows_adam_and_ends_where_the_class_is_unlikely() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, start = torch.randn(3, 6, generator=generator), torch.randn(5, 6, generator=generator)
    found = make_noise(lambda z: z @ weight.T, start, 1, steps=20, learning_rate=0.1, penalty=0.01)
    expected = start.clone().requires_grad_(True)
    adam = torch.optim.Adam([expected], lr=0.1)
    for _ in range(20):
        adam.zero_grad()
        entropy = F.cross_entropy(expected @ weight.T, torch.ones(5, dtype=torch.long))
        (-entropy + 0.01 * (expected**2).sum() / 5).backward()
        adam.step()
    torch.testing.assert_close(found, expected.detach())
    likely = [torch.softmax(z @ weight.T, -1)[:, 1].mean() for z in (start, found)]
    assert likely[1] < 0.2 * likely[0]
    assert not found.requires_grad


def impairing(task: Predictor, request: DeletionRequest, **settings: Any) -> Any:
    method, train = settle(Unsir, {**SMALL, **settings})
    assert isinstance(method, Unsir)
    return method.encode("forget", task.copy(), request, Run(train=train))


@pytest.mark.parametrize("name", ["resnet", "module", "table"])
def test_the_set_that_impairs_is_noise_of_each_class_and_the_rest(
    tiny_predictor: Any, tiny_rows: Any, name: str
) -> None:
    settings = {} if name == "table" else {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    task = tiny_predictor(name, **settings)
    request = asked(tiny_rows, name, "ant", "cat")
    mixed = impairing(task, request)
    assert len(mixed) == 2 * 8 * 3 + 20
    assert mixed.targets[:48].tolist() == [0] * 24 + [2] * 24
    assert (mixed.targets[48:] == 1).all()
    assert len(set(mixed.ids)) == len(mixed)
    # The kept examples are seen as they are, the noise as it was made.
    kept = task.batch(task.encode(request.retain))
    seen = task.batch(mixed.take(range(48, 68)))
    assert all(torch.equal(seen[key], value) for key, value in kept.items())
    with torch.no_grad():
        losses = task.statistics(mixed.take(range(24))).nll
        generator = torch.Generator().manual_seed(1)
        key = next(iter(kept))
        random = task.predict({key: torch.randn(24, *kept[key].shape[1:], generator=generator)})
        assert losses.mean() > F.cross_entropy(random, torch.zeros(24, dtype=torch.long)) + 0.02


def test_parity_makes_the_references_set(tiny_predictor: Any, tiny_rows: Any) -> None:
    mixed = impairing(tiny_predictor("resnet"), asked(tiny_rows, "resnet", "bee", "cat"), parity=True)
    assert len(mixed) == 2 * 3 * 3 + 20
    assert (mixed.targets[:18] == 1).all()


def test_no_input_of_the_class_is_read(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = asked(tiny_rows, "table")
    other = request.forget.map(lambda row: {"height": -7.0, "width": 3.0 * len(row["id"])})
    both = [
        unlearn(tiny_predictor("table"), r, "unsir", settings=SMALL).model
        for r in (request, DeletionRequest(other, request.retain, scenario="class"))
    ]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*(m.named_parameters() for m in both), strict=True))


def test_few_of_each_class_are_enough(tiny_predictor: Any, tiny_rows: Any) -> None:
    mixed = impairing(tiny_predictor("table"), asked(tiny_rows, "table"), retain_per_class=4)
    assert torch.bincount(mixed.targets).tolist() == [24, 4, 4]


def test_the_class_goes_and_the_rest_stays() -> None:
    train = known_sets.digits("train")
    request = scenarios.whole_class(train, "3")
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 64, "outputs": 10, "hidden": [64]})
    fresh = Predictor.of_images(factory.make(0), list("0123456789"), factory=factory, channels=1)
    everything = DeletionRequest(known_sets.digits("test"), train)
    task = unlearn(fresh, everything, "retrain", settings={"epochs": 60, "learning_rate": 3e-3}).model
    assert accuracy(task, request.forget) > 0.9
    settings = {"noise_images": 64, "noise_repeats": 8, "learning_rate": 1e-2, "batch_size": 64, "repair_epochs": 2}
    done = unlearn(task, request, "unsir", settings=settings)
    assert accuracy(done.model, request.forget) < 0.1
    assert accuracy(done.model, request.retain) > 0.85  # type: ignore[arg-type]
    assert done.config["stages"] == ["impair", "repair"]
    assert done.config["noise"] == {"classes": [3]}


def test_what_cannot_work_is_refused(tiny_predictor: Any, tiny_rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "predict", lambda *_: pytest.fail("something was computed"))
    rows = tiny_rows("table", range(20))
    single = DeletionRequest(rows.select(range(6)), rows.select(range(6, 20)))
    with pytest.raises(BadInput, match="serves requests of the scenario class, and this one is 'examples'"):
        unlearn(tiny_predictor("table"), single, "unsir")
    part = DeletionRequest(rows.select([0, 3]), rows.select(range(4, 20)), scenario="class")
    with pytest.raises(BadInput, match="of ant the retain set holds examples too"):
        unlearn(tiny_predictor("table"), part, "unsir")
    with pytest.raises(BadInput, match="does not serve text_classifier"):
        unlearn(tiny_predictor("bert"), asked(tiny_rows, "bert"), "unsir")
