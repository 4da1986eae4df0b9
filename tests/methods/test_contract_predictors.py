"""What every method must do on classifiers and regressors, on every kind of tiny model that it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.methods.base import ObjectiveMethod
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.loading import load_task
from expunge.tasks.predictor import Predictor

MakePredictor = Callable[..., Predictor]
Rows = Callable[[str, range], Dataset]
# One tiny model per kind, with batch normalisation where there are images.
KIND_OF = {
    "image_classifier": "resnet",
    "text_classifier": "bert",
    "tabular_classifier": "table",
    "regressor": "table-regressor",
}
MATRIX = [(m, KIND_OF[kind]) for m in METHODS.names() for kind in METHODS.get(m).tasks if kind in KIND_OF]
# The other models on the two methods that together use every path of the loop.
OTHERS = ("vit", "convnext", "swin", "module", "gpt2-score", "image-regressor")
MATRIX += [(m, name) for m in ("npo", "retrain") for name in OTHERS]
QUICK = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0}


def quick(method: str, **more: Any) -> dict[str, Any]:
    return {**QUICK, **more} if issubclass(METHODS.get(method), ObjectiveMethod) else more


def asked(rows: Rows, name: str, method: str = "npo") -> DeletionRequest:
    """Forget six, retain twelve, six held out; where a method asks for a class, the first of three."""
    if "class" in METHODS.get(method).scenarios:
        wanted = [
            rows(name, range(18)).filter(lambda row, own=own: (row["label"] == "ant") is own) for own in (True, False)
        ]
        return DeletionRequest(*wanted, rows(name, range(30, 36)), scenario="class")
    return DeletionRequest(rows(name, range(6)), rows(name, range(6, 18)), rows(name, range(30, 36)))


def state(task: Predictor) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


@pytest.mark.parametrize(("method", "name"), MATRIX)
def test_a_new_model_comes_out_and_the_given_one_stays(
    tiny_predictor: MakePredictor, tiny_rows: Rows, tmp_path: Path, method: str, name: str
) -> None:
    task, request = tiny_predictor(name), asked(tiny_rows, name, method)
    task.model.train()
    before = state(task)
    done = unlearn(task, request, method, settings=quick(method))
    assert all(torch.equal(value, state(task)[k]) for k, value in before.items()), "the given model was changed"
    assert task.model.training
    assert all(p.grad is None for _, p in task.named_parameters())

    new = done.model
    assert isinstance(new, Predictor)
    assert any(not torch.equal(before[k], value) for k, value in new.model.state_dict().items())
    assert all(torch.isfinite(value).all() for value in new.model.state_dict().values())
    assert not new.model.training
    assert done.cost.forwards > 0
    encoded = new.encode(request.forget)
    with torch.no_grad():
        here = new.statistics(encoded)
        assert torch.isfinite(here.nll).all()
        done.save(tmp_path / "out")
        again = load_task(tmp_path / "out", factory="tiny_modules:plain_module" if name == "module" else None)
        assert again.kind == new.kind
        torch.testing.assert_close(again.statistics(again.encode(request.forget)).logits, here.logits)


@pytest.mark.parametrize(("method", "name"), [pair for pair in MATRIX if pair[1] in KIND_OF.values()])
def test_the_same_seed_gives_the_same_weights(
    tiny_predictor: MakePredictor, tiny_rows: Rows, method: str, name: str
) -> None:
    runs = []
    for seed in (1, 1, 2):
        settings = {"augment": "flip_shift", "padding": 1} if name == "resnet" else {}
        task = tiny_predictor(name, **settings)
        done = unlearn(task, asked(tiny_rows, name, method), method, settings=quick(method, seed=seed))
        runs.append(done.model.model.state_dict())
    assert all(torch.equal(runs[0][k], value) for k, value in runs[1].items())
    if issubclass(METHODS.get(method), ObjectiveMethod):
        assert any(not torch.equal(runs[0][k], value) for k, value in runs[2].items())


@pytest.mark.parametrize("name", sorted(KIND_OF.values()))
def test_a_method_of_another_kind_is_refused_before_any_compute(
    tiny_predictor: MakePredictor, tiny_rows: Rows, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Predictor, "statistics", lambda *_: pytest.fail("something was computed"))
    task = tiny_predictor(name)
    with pytest.raises(BadInput, match=f"method idk: does not serve {task.kind}"):
        unlearn(task, asked(tiny_rows, name), "idk")


def test_there_are_methods_for_every_kind() -> None:
    general = {"retrain", "finetune", "gradient_ascent", "grad_diff", "task_vector", "npo"}
    for name in KIND_OF.values():
        assert general <= {method for method, model in MATRIX if model == name}
