"""Every layer's rule against one backward pass per example, and which layers are left to other means."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from expunge.selections.layer_gradients import (
    Layers,
    NotApart,
    backward,
    calls_in,
    layers_of,
    recording,
    squares_of,
)

SIZE = 5


class Tokens(nn.Module):
    """Embeds tokens (a padding token among them) and positions, which are the same for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(7, 4, padding_idx=0), nn.Embedding(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.abs() * 3).long() % 7
        hidden = self.word(tokens) + self.place(torch.arange(x.shape[1])[None])
        out: Tensor = self.head(hidden.tanh().mean(1))
        return out


class Twice(nn.Module):
    """Calls a layer twice, shares a weight, transposes a batch, changes an output in place."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.turned, self.plain = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.one, self.other = nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.one.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x).tanh())
        turned = x[:, None].expand(-1, SIZE, -1).transpose(0, 1)  # as many places as examples: shapes do not tell
        x = self.turned(turned).tanh().mean(0)
        x = torch.relu_(self.plain(x))
        out: Tensor = self.head(self.other(self.one(x)))
        return out


def flat(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (flat(nn.Linear(6, 5), nn.Tanh()), (6,)),
    "linear over places": (flat(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)), (2, 3, 6)),
    "conv": (flat(nn.Conv2d(2, 4, 3, stride=2, padding=(1, 2)), nn.ReLU(inplace=True)), (2, 7, 6)),
    "dilated groups": (flat(nn.Conv2d(4, 6, (3, 2), dilation=2, groups=2, padding=1), nn.Tanh()), (4, 7, 6)),
    "depthwise": (flat(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1, stride=2, bias=False)), (3, 6, 6)),
    "norms": (flat(nn.GroupNorm(2, 4), nn.Tanh(), nn.LayerNorm([3, 2]), nn.BatchNorm2d(4), nn.Tanh()), (4, 3, 2)),
    "flat norms": (flat(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.LayerNorm(4)), (6,)),
    "tokens": (Tokens, (6,)),
    "awkward": (Twice, (6,)),
    "folded": (flat(nn.Unflatten(1, (2, 3)), nn.Flatten(0, 1), nn.Linear(3, 2), nn.Unflatten(0, (-1, 2))), (6,)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, x = make().eval(), torch.randn(SIZE, *shape)
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.add_(0.3)
                module.running_var.mul_(1.7)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0.5
    return model, x


def loss(outputs: Tensor, k: int) -> Tensor:
    return -torch.log_softmax(outputs, -1)[:, k]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "conv", "norms", "tokens"])
def test_squares_are_added_up_in_single_precision_or_better(name: str, dtype: torch.dtype) -> None:
    found, given = [], made(name)
    for precision in (torch.float32, dtype):
        model, x = copy.deepcopy(given[0]).to(precision), given[1].to(precision)
        layers = layers_of(model, dict(model.named_parameters()), lambda n, m=model, x=x: m(x[:n]), SIZE)
        with recording(model, list(layers.owned), layers.same, SIZE) as seen:
            outputs = model(x)
        calls = calls_in(seen, layers, SIZE)
        each = backward(calls, loss(outputs.float(), 0), keep=False)
        found.append([squares_of(call, [g], [torch.ones(SIZE)]) for call, g in zip(calls, each, strict=True)])
    for plain, other in zip(*found, strict=True):
        for own, value in other.items():
            assert value.dtype == torch.promote_types(dtype, torch.float32)
            rough = 1e-5 if dtype == torch.float64 else 0.1
            torch.testing.assert_close(value.float(), plain[own], atol=rough, rtol=rough)


@pytest.mark.parametrize("name", CASES)
def test_rules_are_one_backward_pass_per_example(name: str) -> None:
    model, x = made(name)
    parameters = dict(model.named_parameters())
    layers = layers_of(model, parameters, lambda size: model(x[:size]), SIZE)
    with recording(model, list(layers.owned), layers.same, SIZE) as seen:
        outputs = model(x)
    calls = calls_in(seen, layers, SIZE)
    found = [backward(calls, loss(outputs, k), keep=k == 0) for k in (0, 1)]
    shares = [torch.rand(SIZE), torch.rand(SIZE)]
    single = {
        full: torch.stack([torch.autograd.grad(loss(model(x[i : i + 1]), 0)[0], p)[0] for i in range(SIZE)])
        for full, p in parameters.items()
        if full not in layers.rest
    }
    other = {
        full: torch.stack([torch.autograd.grad(loss(model(x[i : i + 1]), 1)[0], p)[0] for i in range(SIZE)])
        for full, p in parameters.items()
        if full not in layers.rest
    }
    for k, (names, call) in enumerate(zip(layers.owned.values(), calls, strict=True)):
        summed = squares_of(call, [f[k] for f in found], shares)
        for own, full in names.items():
            expected = sum(
                torch.einsum("b,b...->...", share, of[full].square())
                for share, of in zip(shares, (single, other), strict=True)
            )
            torch.testing.assert_close(summed[own], expected, atol=1e-6, rtol=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("conv", set()),
        ("tokens", set()),
        ("awkward", {"twice", "turned", "one", "other"}),
        ("folded", {"2"}),
    ],
)
def test_what_cannot_be_told_apart_by_rows_is_left(name: str, rest: set[str]) -> None:
    model, x = made(name)
    layers = layers_of(model, dict(model.named_parameters()), lambda size: model(x[:size]), SIZE)
    assert {full.rpartition(".")[0] for full in layers.rest} == rest


def test_a_model_that_mixes_examples_has_no_such_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    x = torch.randn(4, 4)
    layers = layers_of(model, dict(model.named_parameters()), lambda size: model(x[:2]), 2)
    assert layers.owned == {}
    assert len(layers.rest) == 4


def test_an_input_changed_in_place_is_seen() -> None:
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    layers = Layers({"": {"weight": "weight"}}, [], [], 1)
    with recording(model, [""]) as seen:
        outputs = model(x)
    x.zero_()
    calls = calls_in(seen, layers, 4)
    with pytest.raises(NotApart, match="in place"):
        squares_of(calls[0], [torch.ones_like(outputs)], [torch.ones(4)])
    with pytest.raises(NotApart, match="otherwise"):
        calls_in({}, layers, 4)
