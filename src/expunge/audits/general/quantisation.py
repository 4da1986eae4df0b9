"""Quantisation: does the knowledge come back when the weights are rounded to few bits?

An update that keeps within a rounding cell is undone by rounding: the quantised unlearned model is then the quantised
original. Weight matrices are rounded to the nearest of 2^b levels per output channel, or per group of inputs;
embeddings and the output head stay, as the libraries leave them. The null adds uniform noise as wide as the cells
instead.

Per-example statistic for the verdict: ``quantised_nll``, the lowest NLL at any of the bit widths, against the oracle's
after the same and with the holdout examples as the control.

Source: Zhang et al. 2024, Catastrophic Failure of LLM Unlearning via Quantization (arXiv:2410.16454).
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.audits.base import Table
from expunge.audits.observations import Observations
from expunge.audits.tamperer import Course, Material, Steps, TamperConfig, Tamperer
from expunge.errors import Problem, UnsupportedModel
from expunge.tasks.kinds import KINDS

if TYPE_CHECKING:
    from expunge.tasks.base import Task
    from expunge.tasks.causal_lm import CausalLM

Scheme = Literal["channel", "group", "bitsandbytes", "torchao"]
_TITLES = {
    "channel": "rounded to nearest per output channel",
    "group": "rounded to nearest per group",
    "bitsandbytes": "bitsandbytes (int8, nf4)",
    "torchao": "torchao (weights only)",
}
# Of 16, so that half precision counts as nothing given up.
_FULL = 16
# What libraries round to, and the widths that they have.
LIBRARIES = ("bitsandbytes", "torchao")
LIBRARY_BITS = (8, 4)
# Inputs per block of bitsandbytes' 4-bit layers; others stay as they are.
_BLOCK = 64


def cells(weight: Tensor, bits: int, group: int | None = None) -> tuple[Tensor, Tensor]:
    """Round to the nearest level, symmetric around 0.

    Args:
        weight: (..., I) one output channel per row.
        bits: 2 or more; levels are ``-(2^(b-1) - 1) .. 2^(b-1) - 1``.
        group: inputs that share a scale; the last group of a row may be smaller. None: the whole row.

    Returns:
        (..., I) integer codes and (..., I) the width of each weight's cell, in the weight's unit. ``codes * width`` is
        the rounded weight, at most half a width away; where all weights of a group are 0, so are codes and width.
    """
    inputs = weight.shape[-1]
    size = inputs if group is None else min(group, inputs)
    padded = nn.functional.pad(weight, (0, -inputs % size))
    grouped = padded.reshape(*weight.shape[:-1], -1, size)
    width = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    codes = torch.where(width > 0, grouped / width.clamp_min(torch.finfo(weight.dtype).tiny), 0.0).round()

    def back(x: Tensor) -> Tensor:
        return x.expand_as(grouped).reshape(*weight.shape[:-1], -1)[..., :inputs]

    return back(codes), back(width)


def matrices(model: nn.Module, head: nn.Module | None) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and weights that get rounded, each as a view with one output channel per row of its last axis.

    These are the matrices of all linear layers and experts and the kernels of convolutions, without embeddings and
    the output head. Kernels with channels last are laid out anew, with the same values.

    Args:
        model: the model.
        head: its output head, if it has one.
    """
    kept = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    kept |= {id(p) for p in head.parameters()} if head is not None else set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in kept:
                kernel = isinstance(module, nn.modules.conv._ConvNd)
                if kernel and not parameter.is_contiguous():  # channels last: such a kernel has no rows to view
                    parameter.data = parameter.data.contiguous()
                turned = parameter.detach().mT if isinstance(module, Conv1D) else parameter.detach()
                if kernel:
                    # One row per output channel; a view, for what is written there must reach the layer.
                    turned = turned.view(len(turned), -1)
                yield f"{prefix}.{name}", turned


class Quantisation(Tamperer):
    """Recovery of each model as its weights lose bits."""

    id = "quantisation"
    title = "Does the knowledge come back when the weights are quantised?"
    tasks = KINDS
    paper = "Zhang et al. 2024, Catastrophic Failure of LLM Unlearning via Quantization (arXiv:2410.16454)"
    default = False
    shows = False
    axis = "bits per weight given up, of 16"
    label = "Quantisation"
    held = "quantised_nll"

    class Config(TamperConfig):
        """Settings of the quantisation audit."""

        bits: tuple[int, ...] = Field((8, 4, 3), description="bits per weight to round to, from 2 to 8")
        schemes: tuple[Scheme, ...] = Field(
            ("channel",),
            min_length=1,
            description="how to round: channel, group, or a library (8 and 4 bits): bitsandbytes, torchao",
        )
        group: int = Field(32, ge=2, description="inputs that share a scale in schemes group and torchao")

        @field_validator("bits")
        @classmethod
        def _widths(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
            if not bits or not all(2 <= b <= 8 for b in bits):
                raise ValueError("give at least one width from 2 to 8: without rounding there is no attack")
            return tuple(sorted(set(bits), reverse=True))

        @field_validator("schemes")
        @classmethod
        def _installed(cls, schemes: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
            for name in LIBRARIES:
                if name in schemes and importlib.util.find_spec(name) is None:
                    raise ValueError(f"{name} is not installed; pip install {name}, or leave it out")
            return schemes

        @model_validator(mode="after")
        def _widths_of_libraries(self) -> Quantisation.Config:
            if set(self.schemes) & set(LIBRARIES) and not set(self.bits) & set(LIBRARY_BITS):
                raise ValueError("libraries round to 8 and 4 bits: give one of these, or another scheme")
            return self

    def budgets(self) -> list[float]:
        return [0.0, *(float(_FULL - b) for b in self.config.bits)]

    def whole(self, course: Course) -> float:
        bits = [b for b in self.config.bits if course.name not in LIBRARIES or b in LIBRARY_BITS]
        return float(_FULL - bits[-1])

    def courses(self, seen: Observations) -> list[Course]:
        named = [Course("" if s == "channel" else s, _TITLES[s], uses_shown=False) for s in self.config.schemes]
        return [*named, Course("noise", "noise as wide as the cells", null=True, uses_shown=False)]

    def attack(self, victim: CausalLM, material: Material, course: Course, choice: Any) -> Steps:
        yield 0.0, victim.score
        if course.name in LIBRARIES:
            yield from self._with_library(victim, course.name)
            return
        exact = {name: weight.clone() for name, weight in _weights(victim)}
        luck = torch.Generator(device=victim.device).manual_seed(material.seed)
        for bits in self.config.bits:
            for name, weight in _weights(victim):
                codes, width = cells(exact[name], bits, self.config.group if course.name == "group" else None)
                if course.null:
                    noise = torch.rand(width.shape, generator=luck, device=width.device) - 0.5
                    weight.copy_(exact[name] + noise * width)
                else:
                    weight.copy_(codes * width)
            yield float(_FULL - bits), victim.score

    def _with_library(self, victim: CausalLM, library: str) -> Steps:
        quantise = _bitsandbytes if library == "bitsandbytes" else _torchao
        exact = victim.model
        for bits in self.config.bits:
            if bits in LIBRARY_BITS:
                victim.model = copy.deepcopy(exact)
                victim.model = quantise(victim.model, victim.head_module(), bits, self.config.group)
                yield float(_FULL - bits), victim.score
        victim.model = exact

    def tried(self, material: Material, choice: Any) -> dict[str, Any]:
        return {"bits": list(self.config.bits), "schemes": list(self.config.schemes)}

    def tables(self, seen: Observations) -> list[Table]:
        """Return how many codes differ from the quantised original's: near 0, the two are the same model."""
        if "original" not in seen.models:
            return []
        group = None if "channel" in self.config.schemes else self.config.group
        original = dict(_weights(self.victim(seen.models["original"])))
        rows = []
        for model, task in seen.models.items():
            if model == "original":
                continue
            own = dict(_weights(self.victim(task)))
            if {name: w.shape for name, w in own.items()} != {name: w.shape for name, w in original.items()}:
                continue
            for bits in self.config.bits:
                changed = sum(
                    int((cells(own[name], bits, group)[0] != cells(original[name], bits, group)[0]).sum())
                    for name in original
                )
                rows.append([model, bits, changed / sum(w.numel() for w in original.values())])
        return [Table("Share of weights in another cell than the original's", ["model", "bits", "share"], rows)]


def _weights(task: Task) -> Iterator[tuple[str, Tensor]]:
    return matrices(task.model, task.head_module())


def _linears(model: Any, head: nn.Module | None) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and child is not head:
                yield parent, name, child


def _bitsandbytes(model: Any, head: nn.Module | None, bits: int, group: int) -> Any:
    """Replace linear layers by the library's: its defaults for 8 bits, nf4 for 4."""
    import bitsandbytes

    fitting = [found for found in _linears(model, head) if bits == 8 or found[2].in_features % _BLOCK == 0]
    if not fitting:
        raise UnsupportedModel(
            Problem(type(model).__name__, f"has no linear layer whose inputs are a multiple of {_BLOCK}", "use bits 8")
        )
    for parent, name, layer in fitting:
        shape = (layer.in_features, layer.out_features)
        made: Any
        if bits == 8:
            made = bitsandbytes.nn.Linear8bitLt(*shape, bias=layer.bias is not None, has_fp16_weights=False)
            weight = bitsandbytes.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            made = bitsandbytes.nn.Linear4bit(
                *shape, bias=layer.bias is not None, quant_type="nf4", compute_dtype=torch.float32
            )
            weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        made.weight, made.bias = weight, layer.bias
        setattr(parent, name, made.to(layer.weight.device))
    return model


def _torchao(model: Any, head: nn.Module | None, bits: int, group: int) -> Any:
    """Quantise linear layers in place, weights only: int8 per channel, int4 per group."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    config = Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(torch.int4, PerGroup(group))  # type: ignore[attr-defined]
    chosen = {id(layer) for _, _, layer in _linears(model, head) if bits == 8 or layer.in_features % group == 0}
    quantize_(model, config, filter_fn=lambda module, _: id(module) in chosen)
    return model
