from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.prune import L1Unstructured, global_unstructured

from expunge.errors import BadInput
from expunge.methods.base import ObjectiveMethod
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.magnitude import Magnitude, MagnitudeConfig, prunable
from expunge.tasks.predictor import Predictor

SETTINGS: dict[str, Any] = {"sparsity": 0.7, "epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
SHORT = {"following.epochs": 2, "following.batch_size": 4, "following.learning_rate": 1e-2}
# Those that start anew, select, work in stages, change weights once, and change the head.
FOLLOWERS = (
    "finetune",
    "retrain",
    "salun",
    "scrub",
    "fisher",
    "ssd",
    "influence",
    "eu_k",
    "boundary_expand",
    "l1_sparse",
)


def asked(rows: Any, name: str) -> DeletionRequest:
    return DeletionRequest(rows(name, range(6)), rows(name, range(10, 30)))


def zeros(task: Any, names: Any) -> dict[str, Tensor]:
    return {name: p == 0 for name, p in task.named_parameters() if name in names}


@pytest.mark.parametrize("then", FOLLOWERS)
def test_pruned_weights_stay_zero_whatever_follows(tiny_predictor: Any, tiny_rows: Any, then: str) -> None:
    task, request = tiny_predictor("resnet"), asked(tiny_rows, "resnet")
    mask = Magnitude(MagnitudeConfig(share=1 - 0.7)).build(task, request, 0)
    trained = issubclass(METHODS.get(then), ObjectiveMethod)
    done = unlearn(task, request, "prune", settings={**SETTINGS, "then": then, **(SHORT if trained else {})})
    found = zeros(done.model, prunable(task))
    assert all(bool(found[name][~mask[name]].all()) for name in found)  # type: ignore[operator]
    total = sum(part.numel() for part in found.values())
    assert sum(int(part.sum()) for part in found.values()) == pytest.approx(0.7 * total, abs=0.02 * total)
    assert done.config["found"]["sparsity"] == pytest.approx(0.7, abs=0.02)
    assert done.method == "prune"
    assert done.removal_level == "approximate"
    assert done.cost.forwards > 0


@pytest.mark.parametrize("rule", ["imp", "synflow"])
def test_the_other_rules_prune_too(tiny_predictor: Any, tiny_rows: Any, rule: str) -> None:
    settings = {**SETTINGS, **SHORT, "rule": rule}
    done = unlearn(tiny_predictor("module"), asked(tiny_rows, "module"), "prune", settings=settings)
    assert done.config["found"]["sparsity"] == pytest.approx(0.7, abs=0.02)


def test_the_training_in_between_sees_what_it_is_told_to(tiny_predictor: Any, tiny_rows: Any) -> None:
    task, request = tiny_predictor("table"), asked(tiny_rows, "table")

    def first(**more: Any) -> Any:
        seen: list[dict[str, Any]] = []
        settings = {**SETTINGS, **SHORT, "sparsity": 0.2, **more}
        unlearn(task, request, "prune", settings=settings, progress=lambda _n, _t, record: seen.append(dict(record)))
        return [record for record in seen if "loss/recover_nll" in record]

    # 26 examples are four batches of eight, 20 are three.
    assert len(first()) == 2 * 4
    assert len(first(recover_on="retain")) == 2 * 3
    assert first(recover_on="none") == []


def test_rewinding_goes_back_to_earlier_weights_at_the_places_that_are_kept(
    tiny_predictor: Any, tiny_rows: Any, tmp_path: Path
) -> None:
    task, early, request = tiny_predictor("resnet"), tiny_predictor("resnet", seed=5), asked(tiny_rows, "resnet")
    early.save(tmp_path / "early")
    mask = Magnitude(MagnitudeConfig(share=1 - 0.7)).build(task, request, 0)
    settings = {"sparsity": 0.7, "rewind": str(tmp_path / "early"), "recover_on": "none", "then": "finetune",
                "following.max_steps": 1, "following.learning_rate": 1e-12}  # fmt: skip
    done = unlearn(task, request, "prune", settings=settings)
    old = dict(early.named_parameters())
    for name, p in done.model.named_parameters():
        part = mask[name]
        expected = old[name] if part is None else torch.where(part, old[name], 0.0)
        torch.testing.assert_close(p, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("stop_at", [3, 9])
def test_a_killed_run_ends_with_the_same_bytes(
    tiny_predictor: Any, tiny_rows: Any, tmp_path: Path, stop_at: int
) -> None:
    request = asked(tiny_rows, "resnet")
    settings = {**SETTINGS, **SHORT, "checkpoint_every": 1}
    expected = unlearn(tiny_predictor("resnet"), request, "prune", settings=settings).model.model.state_dict()
    seen = 0

    def kill(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unlearn(tiny_predictor("resnet"), request, "prune", settings=settings, folder=tmp_path, progress=kill)
    again = unlearn(tiny_predictor("resnet"), request, "prune", settings=settings, folder=tmp_path)
    assert all(torch.equal(expected[name], value) for name, value in again.model.model.state_dict().items())


def test_a_smaller_selection_may_be_made_of_what_is_left(tiny_predictor: Any, tiny_rows: Any) -> None:
    task, request = tiny_predictor("table"), asked(tiny_rows, "table")
    settings = {
        **SETTINGS,
        **SHORT,
        "recover_on": "none",
        "following.select.by": "random",
        "following.select.share": 0.5,
    }
    done = unlearn(task, request, "prune", settings=settings)
    mask = Magnitude(MagnitudeConfig(share=1 - 0.7)).build(task, request, 0)
    old = dict(task.named_parameters())
    same = moved = 0
    for name, p in done.model.named_parameters():
        part = mask[name]
        if part is not None:
            same += int((p[part] == old[name][part]).sum())
            moved += int((p[part] != old[name][part]).sum())
    assert same > 0
    assert moved > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"then": "prune"}, "is prune itself"),
        ({"then": "finetun"}, "did you mean finetune"),
        ({"then": "idk"}, "does not serve image_classifier"),
        ({"following.epoch": 3}, "did you mean epochs"),
        ({"following.lora.rank": 2}, "fills the pruned places"),
        ({"lora.rank": 2}, "fill the pruned places"),
        ({"stop.every": 2}, "following.stop.every"),
        ({"then": "ssd", "following.select.by": "random"}, "does not train with the loop"),
        ({"sparsity": 1.0}, "less than 1"),
    ],
)
def test_what_cannot_work_is_refused_before_any_compute(
    tiny_predictor: Any, tiny_rows: Any, monkeypatch: pytest.MonkeyPatch, settings: Any, message: str
) -> None:
    monkeypatch.setattr(Predictor, "statistics", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(BadInput, match=message):
        unlearn(tiny_predictor("resnet"), asked(tiny_rows, "resnet"), "prune", settings=settings)


def test_what_the_following_method_needs_is_asked_for(tiny_predictor: Any, tiny_rows: Any) -> None:
    alone = DeletionRequest(tiny_rows("resnet", range(6)))
    with pytest.raises(BadInput, match="needs a retain set"):
        unlearn(tiny_predictor("resnet"), alone, "prune", settings={"recover_on": "none"})
    settings = {"recover_on": "none", "then": "gradient_ascent", "following.epochs": 1}
    assert unlearn(tiny_predictor("resnet"), alone, "prune", settings=settings).method == "prune"


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_as_many_are_pruned_as_by_torchs_own_pruning(tiny_predictor: Any, tiny_rows: Any, sparsity: float) -> None:
    given = tiny_predictor("table")
    net = torch.nn.Sequential(torch.nn.Linear(4, 7), torch.nn.Linear(7, 9), torch.nn.Linear(9, 3))
    task = Predictor(net, given.inputs, given.outcome)
    assert sum(p.numel() for p in prunable(task).values()) == 91  # an odd number, of which one half is not whole
    settings = {"sparsity": sparsity, "recover_on": "none", "then": "ssd"}
    new = unlearn(task, asked(tiny_rows, "table"), "prune", settings=settings).model
    pruned = [(p == 0).flatten() for p in prunable(new).values()]
    modules = [(net[0], "weight"), (net[1], "weight")]
    global_unstructured(modules, L1Unstructured, amount=sparsity)
    theirs: list[Any] = [module.weight_mask for module, _ in modules]
    assert torch.equal(torch.cat(pruned), torch.cat([mask.flatten() == 0 for mask in theirs]))
