"""Value vectors: what each hidden unit of a feed-forward layer writes to the residual stream.

The output matrix of the feed-forward part of a block has one value vector per hidden unit. How the matrix is called and
which way it lies differs between families; here it is always ``(units, width)``.

Source: Geva et al. 2021, Transformer Feed-Forward Layers Are Key-Value Memories (arXiv:2012.14913).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge.errors import BadInput, Problem, UnsupportedModel
from expunge.tasks.blocks import decoder_blocks, plain_model

# How the output matrix is called, by its own name (a module or a bare parameter).
NAMES = (
    "down_proj",  # Llama, Mistral, Qwen, Gemma, Phi-3, OLMo, MPT, and the fused experts of transformers 5
    "c_proj",  # GPT-2, GPT-Neo, GPT-BigCode, StarCoder2
    "dense_4h_to_h",  # GPT-NeoX, BLOOM, Falcon
    "fc_out",  # GPT-J, CodeGen
    "fc2",  # OPT, Phi, XGLM, BioGPT
    "w2",  # DBRX, and mixtures whose experts are modules
    "ff_out",  # OLMo before it was part of transformers
    "output_linear",  # Granite and JetMoE mixtures
    "wo",
    "lin2",
)
ATTENTION = ("attn", "attention")
NORMS_BEHIND = ("post_feedforward_layernorm", "post_mlp_layernorm")  # Gemma 2 and 3, OLMo 2; GLM 4


class Place(NamedTuple):
    """Where a value vector is.

    Attributes:
        layer: decoder block, from 0.
        dim: hidden unit, from 0.
        matrix: which output matrix of the block, by its name in there, such as "mlp.down_proj" or
            "mlp.experts.down_proj[3]"; empty where the block has only one.
    """

    layer: int
    dim: int
    matrix: str = ""

    def __str__(self) -> str:
        return f"layer {self.layer}, unit {self.dim}" + (f" of {self.matrix}" if self.matrix else "")


@dataclass(frozen=True)
class ValueMatrix:
    """The value vectors of one feed-forward layer, or of one expert of it.

    Attributes:
        layer: decoder block, from 0.
        name: within the block; see ``Place.matrix``.
        parameter: full name of the weight that holds the vectors.
        vectors: (units, width) view of the weight: writing to it changes the model.
        carrier: the module whose output the vectors are summed into.
        gain: (width,) gain of a norm between this layer and the residual stream, or None.
        alone: whether the block has no other output matrix.
        expert: index into a weight that holds several experts, or None.
        in_rows: whether the weight keeps the vectors in its rows.
    """

    layer: int
    name: str
    parameter: str
    vectors: Tensor
    carrier: nn.Module = field(repr=False)
    gain: Tensor | None = None
    alone: bool = True
    expert: int | None = None
    in_rows: bool = False

    def oriented(self, weight: Tensor) -> Tensor:
        """Return the (units, width) view of a tensor that is laid out as the whole weight is, such as its gradient."""
        one = weight if self.expert is None else weight[self.expert]
        return one if self.in_rows else one.T

    def place(self, dim: int) -> Place:
        """Return the place of a unit."""
        return Place(self.layer, dim, "" if self.alone else self.name)

    def written(self, units: Tensor | None = None) -> Tensor:
        """Return (n, width) float32 copies of vectors as the residual stream receives them, all or some of them."""
        rows = self.vectors if units is None else self.vectors[units]
        rows = rows.detach().float()
        return rows if self.gain is None else rows * self.gain


def value_matrices(model: nn.Module, pattern: str | None = None) -> list[ValueMatrix]:
    """Find the value vectors of every block.

    Args:
        model: any transformers causal language model without adapters.
        pattern: names the output matrix within a block, with * as wildcard, such as "mlp.out" or "*.experts.*.w_out";
            by default the names of known families are looked for outside of attention.

    Returns:
        The matrices in the order of the blocks; blocks without a feed-forward part have none.

    Raises:
        UnsupportedModel: no block has such a matrix. The message lists what was looked for and what there is.
    """
    plain = plain_model(model)
    width = plain.config.get_text_config().hidden_size
    blocks = decoder_blocks(plain)
    prefix = next(name for name, module in plain.named_modules() if module is blocks)
    out: list[ValueMatrix] = []
    for layer, block in enumerate(blocks):
        gain = _gain_behind(block, width)
        found: list[dict[str, Any]] = []
        for name, parameter, weight, carrier in _candidates(block, pattern, width):
            in_rows = _in_rows(weight, carrier, width)
            for expert in range(weight.shape[0]) if weight.dim() == 3 else (None,):
                one = weight.detach() if expert is None else weight.detach()[expert]
                found.append(
                    {
                        "name": name if expert is None else f"{name}[{expert}]",
                        "parameter": f"{prefix}.{layer}.{parameter}",
                        "vectors": one if in_rows else one.T,
                        "carrier": carrier,
                        "expert": expert,
                        "in_rows": in_rows,
                    }
                )
        out += [ValueMatrix(layer=layer, gain=gain, alone=len(found) == 1, **one) for one in found]
    if not out:
        raise _unsupported(plain, blocks, pattern, width)
    return out


def locate_matrix(matrices: Sequence[ValueMatrix], place: Place, where: str = "place") -> ValueMatrix:
    """Return the matrix that a place is in.

    Raises:
        BadInput: there is no such layer, matrix or unit; the message says which there are.
    """
    here = [m for m in matrices if m.layer == place.layer]
    if not here:
        layers = sorted({m.layer for m in matrices})
        raise BadInput(Problem(where, f"layer {place.layer} has no value vectors", f"layers {_span(layers)} have"))
    named = [m for m in here if not place.matrix or m.name == place.matrix]
    if len(named) != 1:
        what = f"'{place.matrix}' is no matrix of layer {place.layer}" if place.matrix else "names no matrix"
        raise BadInput(Problem(where, what, f"use one of {', '.join(m.name for m in here[:8])}"))
    units = named[0].vectors.shape[0]
    if not 0 <= place.dim < units:
        raise BadInput(
            Problem(where, f"unit {place.dim} does not exist", f"layer {place.layer} has units 0 to {units - 1}")
        )
    return named[0]


def vectors_at(matrices: Sequence[ValueMatrix], places: Sequence[Place]) -> Tensor:
    """Return (n, width) float32 copies of the value vectors at some places.

    Raises:
        BadInput: a place that does not exist.
    """
    rows = [locate_matrix(matrices, place).vectors[place.dim].detach().float() for place in places]
    return torch.stack(rows) if rows else torch.empty(0, matrices[0].vectors.shape[1])


# ---- how it is found -------------------------------------------------------------------------------------------


def _candidates(block: nn.Module, pattern: str | None, width: int) -> Iterator[tuple[str, str, Tensor, nn.Module]]:
    """Yield (name in the block, name of the parameter in the block, weight, module) of every output matrix."""
    for parameter, weight in block.named_parameters():
        owner, _, last = parameter.rpartition(".")
        name = owner if last == "weight" else parameter
        parts = name.split(".")
        if pattern is None:
            wanted = parts[-1] in NAMES and not any(word in part for part in parts for word in ATTENTION)
        else:
            wanted = fnmatchcase(name, pattern)
        if wanted and weight.dim() in (2, 3) and width in weight.shape[-2:]:
            yield name, parameter, weight, block.get_submodule(owner)


def _in_rows(weight: Tensor, carrier: nn.Module, width: int) -> bool:
    """Whether a weight keeps its value vectors in rows, as GPT-2's Conv1D and some experts do, or in columns."""
    rows, columns = weight.shape[-2:]
    if rows == columns:
        return type(carrier).__name__ == "Conv1D" or bool(getattr(carrier, "is_transposed", False))
    return columns == width


def _gain_behind(block: nn.Module, width: int) -> Tensor | None:
    """Return the gain of a norm that follows the feed-forward part before its output is added to the stream."""
    norm: Any = next((m for name, m in block.named_children() if name in NORMS_BEHIND), None)
    if norm is None:
        return None
    weight = next(norm.parameters())
    # An input of mean 0 and mean square 1 comes out as gain times itself, whatever the family adds to its weights.
    probe = torch.ones(1, width, dtype=weight.dtype, device=weight.device)
    probe[:, 1::2] = -1
    with torch.no_grad():
        return ((norm(probe) - norm(torch.zeros_like(probe))) * probe)[0].float()


def _unsupported(model: nn.Module, blocks: nn.ModuleList, pattern: str | None, width: int) -> UnsupportedModel:
    looked = f"'{pattern}'" if pattern else ", ".join(NAMES)
    there = [name for name, p in blocks[0].named_parameters() if p.dim() > 1] if len(blocks) else []
    return UnsupportedModel(
        Problem(
            type(model).__name__,
            f"no block has a feed-forward output matrix with {width} outputs called {looked}; "
            f"the matrices of block 0 are: {', '.join(there) or 'none'}",
            "name it with modules=PATTERN as it is called within a block, for example modules='mlp.out'",
        )
    )


def _span(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) if len(layers) < 6 else f"{layers[0]} to {layers[-1]}"
