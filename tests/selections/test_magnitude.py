from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.base import zero_outside
from expunge.selections.magnitude import Magnitude, MagnitudeConfig, prunable, synflow_scores
from expunge.tasks.factories import Factory
from expunge.tasks.predictor import Predictor

RULES = ("omp", "imp", "synflow")


def asked(rows: Any, name: str) -> DeletionRequest:
    return DeletionRequest(rows(name, range(6)), rows(name, range(10, 30)))


def small_net(hidden: tuple[int, ...] = (5, 4)) -> Predictor:
    """Two hidden layers over single-channel images of 3 x 3."""
    factory = Factory("expunge.tasks.mlp:mlp", {"inputs": 9, "outputs": 3, "hidden": list(hidden)})
    return Predictor.of_images(factory.make(0), ("ant", "bee", "cat"), factory=factory, channels=1)


def kept(mask: Any) -> int:
    return sum(int(part.sum()) for part in mask.values() if part is not None)


def test_what_is_ranked(tiny_predictor: Any) -> None:
    assert list(prunable(small_net())) == ["1.weight", "3.weight"]
    resnet = tiny_predictor("resnet")
    names = {name for name, p in resnet.named_parameters() if p.dim() == 4}
    assert set(prunable(resnet)) == names == set(prunable(resnet, "filters"))
    vit = tiny_predictor("vit")
    assert len(prunable(vit, "filters")) == 1
    assert all("bias" not in name and "norm" not in name and "classifier" not in name for name in prunable(vit))
    assert set(prunable(vit, "all")) == {name for name, _ in vit.named_parameters()}


def test_omp_keeps_the_largest_of_all_and_the_rest_may_move(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    mask = Magnitude(MagnitudeConfig(share=0.3)).build(task, asked(tiny_rows, "resnet"), 0)
    ranked = prunable(task)
    assert set(mask) == {name for name, _ in task.named_parameters()}
    assert all((mask[name] is None) is (name not in ranked) for name in mask)
    inside = torch.cat([p[mask[name]].detach().abs() for name, p in ranked.items()])
    outside = torch.cat([p[~mask[name]].detach().abs() for name, p in ranked.items()])  # type: ignore[operator]
    assert inside.min() >= outside.max()
    assert len(inside) == round(0.3 * (len(inside) + len(outside)))
    per_tensor = Magnitude(MagnitudeConfig(share=0.3, scope="tensor")).build(task, asked(tiny_rows, "resnet"), 0)
    assert all(int(per_tensor[n].sum()) == round(0.3 * p.numel()) for n, p in ranked.items())  # type: ignore[union-attr]


def test_synflow_scores_are_sums_over_paths() -> None:
    task = small_net()
    task.model.double()
    with torch.no_grad():
        for value in task.model.state_dict().values():
            value.abs_()
    weights = {name: p.detach() for name, p in task.named_parameters()}
    found = synflow_scores(task, {"pixel_values": torch.zeros(1, 1, 3, 3)}, ["1.weight", "3.weight"])
    w1, b1, w2, w3 = (weights[name] for name in ("1.weight", "1.bias", "3.weight", "5.weight"))
    first = torch.zeros_like(w1)
    for i in range(5):
        for j in range(9):
            # The input is 1: what flows in over this weight, times all ways on to any output.
            first[i, j] = w1[i, j] * sum(w2[k, i] * w3[c, k] for k in range(4) for c in range(3))
    second = torch.zeros_like(w2)
    for k in range(4):
        for i in range(5):
            second[k, i] = (w1[i].sum() + b1[i]) * w2[k, i] * w3[:, k].sum()
    torch.testing.assert_close(found["1.weight"], first)
    torch.testing.assert_close(found["3.weight"], second)


def test_synflow_rounds_are_those_of_the_definition() -> None:
    task = small_net((12, 8))
    request = DeletionRequest(images(4))
    before = {name: p.clone() for name, p in task.named_parameters()}
    mask = Magnitude(MagnitudeConfig(rule="synflow", share=0.1, synflow_rounds=7)).build(task, request, 0)
    assert all(torch.equal(p, before[name]) for name, p in task.named_parameters())
    # The same by hand: absolute weights, scores of what is left, an exponential schedule.
    names, total = ["1.weight", "3.weight"], 9 * 12 + 12 * 8
    live = {name: torch.ones_like(before[name], dtype=torch.bool) for name in names}
    for k in range(1, 8):
        copy = {n: p.double().abs().detach().requires_grad_(True) for n, p in before.items()}
        for name in names:
            copy[name] = (copy[name].detach() * live[name]).requires_grad_(True)
        h = torch.relu(copy["1.weight"].sum(1) + copy["1.bias"])
        h = torch.relu(copy["3.weight"] @ h + copy["3.bias"])
        (copy["5.weight"] @ h + copy["5.bias"]).sum().backward()
        flat = torch.cat([(copy[n] * copy[n].grad).detach().abs().flatten() for n in names])  # type: ignore[operator]
        best = flat.argsort(descending=True)[: round(0.1 ** (k / 7) * total)]
        chosen = torch.zeros(total, dtype=torch.bool)
        chosen[best] = True
        parts = chosen.split([9 * 12, 12 * 8])
        live = {n: part.view_as(before[n]) for n, part in zip(names, parts, strict=True)}
    assert all(torch.equal(mask[name], live[name]) for name in names)  # type: ignore[arg-type]
    assert kept(mask) == round(0.1 * total)


def images(count: int) -> Any:
    from datasets import Dataset

    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(count, 3, 3, generator=generator)
    rows = [{"id": f"i{k}", "image": pixels[k].tolist(), "label": ("ant", "bee", "cat")[k % 3]} for k in range(count)]
    return Dataset.from_list(rows)


def test_imp_takes_a_fifth_per_round_and_trains_in_between(
    tiny_predictor: Any, tiny_rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.selections import magnitude

    shares: list[float] = []
    whole = magnitude.omp_mask

    def listening(weights: Any, share: float, scope: Any = "global") -> dict[str, Tensor]:
        shares.append(share)
        return whole(weights, share, scope)

    monkeypatch.setattr(magnitude, "omp_mask", listening)
    task, request = tiny_predictor("module"), asked(tiny_rows, "module")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    config = MagnitudeConfig(rule="imp", share=0.4, imp_learning_rate=3e-2, imp_epochs=3)
    mask = Magnitude(config).build(task, request, 0)
    assert shares == pytest.approx([0.8, 0.64, 0.512, 0.4096, 0.4])
    assert math.ceil(math.log(0.4) / math.log(0.8)) == len(shares)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    total = sum(p.numel() for p in prunable(task).values())
    assert kept(mask) == round(0.4 * total)
    at_once = Magnitude(MagnitudeConfig(share=0.4)).build(task, request, 0)
    assert any(not torch.equal(mask[n], at_once[n]) for n in prunable(task))  # type: ignore[arg-type]
    again = Magnitude(config).build(task, request, 0)
    assert all(torch.equal(mask[n], again[n]) for n in prunable(task))  # type: ignore[arg-type]
    assert task.cost.backwards > 0 or task.cost.forwards > 0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("method", ["finetune", "npo", "random_label"])
def test_nothing_outside_moves_whatever_trains(
    tiny_predictor: Any, tiny_rows: Any, rule: str, optimizer: str, method: str
) -> None:
    task, request = tiny_predictor("module"), asked(tiny_rows, "module")
    own = {"share": 0.2, "rule": rule, "synflow_rounds": 5}
    mask = Magnitude(MagnitudeConfig(**own)).build(task, request, 0)
    settings = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.3, "optimizer": optimizer,
                "warmup": 0.0, "select.by": "magnitude", **{f"select.{k}": v for k, v in own.items()}}  # fmt: skip
    new = unlearn(task, request, method, settings=settings)
    moved = False
    for (name, p), (_, old) in zip(new.model.named_parameters(), task.named_parameters(), strict=True):
        part = mask[name]
        if part is not None:
            assert torch.equal(p[~part], old[~part]), name
            moved |= not torch.equal(p[part], old[part])
    assert moved


def test_a_pattern_keeps_other_parameters_where_they_are(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("module")
    mask = Magnitude(MagnitudeConfig(parameters="weight$")).build(task, asked(tiny_rows, "module"), 0)
    assert set(mask) == {name for name, _ in task.named_parameters() if name.endswith("weight")}


def test_zeroing_leaves_what_is_kept(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    before = {name: p.clone() for name, p in task.named_parameters()}
    mask = Magnitude(MagnitudeConfig(share=0.3)).build(task, asked(tiny_rows, "resnet"), 0)
    zero_outside(task, mask)
    for name, p in task.named_parameters():
        part = mask[name]
        expected = before[name] if part is None else torch.where(part, before[name], 0.0)
        assert torch.equal(p, expected)


def test_what_cannot_be_ranked_is_refused(tiny_predictor: Any, tiny_rows: Any) -> None:
    request = asked(tiny_rows, "bert")
    with pytest.raises(BadInput, match="reads tokens"):
        Magnitude(MagnitudeConfig(rule="synflow")).check(tiny_predictor("bert"), request)
    with pytest.raises(BadInput, match="nothing to rank with prunable=filters"):
        Magnitude(MagnitudeConfig(prunable="filters")).check(tiny_predictor("table"), asked(tiny_rows, "table"))
