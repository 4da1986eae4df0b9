"""The decoder blocks of a language model: find them, read what they give out, run no more of them than needed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.errors import BadInput, Problem, UnsupportedModel

# How the stack is called, where several lists of modules have as many members as the model has layers.
STACKS = ("layers", "h", "blocks", "block")
# The matrix with which the feed-forward part of a block writes to the residual stream, by family.
FEED_FORWARD_OUTPUT = re.compile(
    r"(down_proj|dense_4h_to_h|fc2|fc_out|w2|mlp\.c_proj|output_linear)(\.base_layer)?(\.weight)?$"
)

# What two ways to compute one thing may differ by, rounding apart, per precision.
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}
# Of what a feed-forward part puts out, in half precision; one that mixes positions differs by as much as that.
HALF_ROUNDING = 0.05
# Rows are taken out of a feed-forward part where they are at most this share of all positions.
WORTH = 0.9


class LeftEarly(Exception):
    """Ends a forward pass behind the deepest block that is read; caught where that was asked for."""


def plain_model(model: Any) -> Any:
    """Return the transformers model itself, inside its adapters if there are any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the stack of decoder blocks of a causal language model, in the order in which they run.

    Args:
        model: any transformers causal language model, also inside adapters (peft).

    Raises:
        UnsupportedModel: it has no list of as many modules as its configuration names layers, or more than one that
            might be it.
    """
    plain = plain_model(model)
    count = getattr(plain.config.get_text_config(), "num_hidden_layers", None)
    found = {name: m for name, m in plain.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    # Lists inside a block, such as its experts, are not the stack.
    outer = {name: m for name, m in found.items() if not any(name.startswith(f"{other}.") for other in found)}
    if len(outer) > 1:
        outer = {name: m for name, m in outer.items() if name.rpartition(".")[2] in STACKS}
    if len(outer) != 1:
        there = ", ".join(f"{n} of {len(m)}" for n, m in plain.named_modules() if isinstance(m, nn.ModuleList))
        raise UnsupportedModel(
            Problem(
                type(plain).__name__,
                f"{'several stacks' if len(outer) > 1 else 'no stack'} of num_hidden_layers = {count} blocks found; "
                f"its module lists are: {there or 'none'}",
                f"use a model that keeps its blocks in one list called {', '.join(STACKS)}, or a method that reads "
                "no block outputs",
            )
        )
    return next(iter(outer.values()))


def first_blocks(model: nn.Module, count: int) -> PreTrainedModel:
    """Return a causal language model of the first blocks of another, with its embeddings, final norm and head.

    The weights are the other model's own, not copies; modules and configuration are new.

    Args:
        model: any transformers causal language model.
        count: how many blocks, from 1 to all of them.

    Raises:
        BadInput: it does not have that many.
        UnsupportedModel: its blocks cannot be found.
    """
    whole = plain_model(model)
    there = len(decoder_blocks(whole))
    if not 1 <= count <= there:
        raise BadInput(Problem("blocks", f"is {count}, and the model has {there}", f"give a number from 1 to {there}"))
    cut: Any = copy.deepcopy(whole, {id(p): p for p in whole.parameters()})
    blocks, config = decoder_blocks(cut), cut.config.get_text_config()
    del blocks[count:]
    config.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:count]
    return cut


def feed_forward_outputs(model: nn.Module, block: int) -> dict[str, nn.Parameter]:
    """Return the weights with which a block's feed-forward part writes to the residual stream.

    Args:
        model: a causal language model.
        block: which block, from 0.

    Returns:
        The weights by their name within the block: one, or one per expert where these are separate; no adapters.

    Raises:
        UnsupportedModel: none is called as in the families that are known.
    """
    inside = dict(decoder_blocks(model)[block].named_parameters())
    found = {name: p for name, p in inside.items() if FEED_FORWARD_OUTPUT.search(name)}
    if not found:
        raise UnsupportedModel(
            Problem(
                type(plain_model(model)).__name__,
                f"no down projection found in block {block}; its weights are: {', '.join(inside)}",
                "train all weights instead",
            )
        )
    return found


def final_norm(model: nn.Module) -> nn.Module:
    """Return the norm between the last decoder block and the output head.

    Args:
        model: any transformers causal language model, also inside adapters.

    Raises:
        UnsupportedModel: there is none beside the stack of blocks.
    """
    plain = plain_model(model)
    blocks = decoder_blocks(plain)
    beside = next(m for m in plain.modules() if any(child is blocks for child in m.children()))
    norms = [
        module
        for name, module in beside.named_children()
        if "norm" in type(module).__name__.lower() and "embed" not in name
    ]
    if not norms:
        there = ", ".join(name for name, _ in beside.named_children())
        what = f"no norm found beside its blocks; there are: {there}"
        fix = "use a model that keeps its final norm beside the list of its blocks"
        raise UnsupportedModel(Problem(type(plain).__name__, what, fix))
    return norms[-1]


@contextmanager
def block_rows(
    blocks: Sequence[nn.Module], layers: Sequence[int], rows: Tensor, *, leave: bool
) -> Iterator[dict[int, Tensor]]:
    """Take the rows of block outputs out of a forward pass.

    Args:
        blocks: the stack.
        layers: which blocks are read, from 0.
        rows: (R,) flat positions ``b * T + t``.
        leave: end the forward pass behind the deepest of them; nothing of it but the rows can then be used.

    Yields:
        A dictionary that receives (R, H) per layer; gradients flow.
    """
    seen: dict[int, Tensor] = {}
    handles = []

    def take(layer: int, deepest: bool) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen[layer] = hidden.reshape(-1, hidden.shape[-1]).index_select(0, rows)
            if deepest:
                raise LeftEarly

        return hook

    for layer in layers:
        handles.append(blocks[layer].register_forward_hook(take(layer, leave and layer == max(layers))))
    try:
        yield seen
    except LeftEarly:
        pass
    finally:
        for handle in handles:
            handle.remove()


class LastFeedForward:
    """The feed-forward part of a model's last block, run at the rows that are read and nowhere else.

    What it gives out at other positions reaches no prediction. That the module takes every position by itself is tried
    on the first batch, not assumed; one that does not is left as it is.

    Args:
        model: any transformers causal language model, also inside adapters.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.module = last_feed_forward(model)
        self.splits: bool | None = None if self.module is not None else False
        # Blocks that are run once more in the backward pass would be run without what ``at`` adds.
        self._rerun: list[Any] = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]

    @contextmanager
    def at(self, rows: Tensor) -> Iterator[list[int]]:
        """Let only some positions through, and put zeros in the place of the others.

        Args:
            rows: (R,) flat positions ``b * T + t``; distinct where gradients are wanted.

        Yields:
            A list that receives the number of positions that each call was spared.
        """
        spared: list[int] = []
        if self.module is None or self.splits is False or any(m.gradient_checkpointing for m in self._rerun):
            yield spared
            return
        shapes: list[torch.Size] = []

        def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given = args[0] if len(args) == 1 and not kwargs else None
            if not isinstance(given, Tensor) or given.dim() != 3 or len(rows) > WORTH * given.shape[:2].numel():
                return None
            few = given.flatten(0, 1).index_select(0, rows).unsqueeze(0)
            if self.splits is None:
                self.splits = _takes_each_by_itself(module, given, few, rows)
            if not self.splits:
                return None
            shapes.append(given.shape)
            return (few,), kwargs

        def put_back(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            if not shapes:
                return None
            shape = shapes.pop()
            spared.append(shape[:2].numel() - len(rows))
            whole = output.new_zeros(shape[:2].numel(), output.shape[-1])
            return whole.index_copy(0, rows, output[0]).view(*shape[:2], -1)

        handles = [
            self.module.register_forward_pre_hook(take, with_kwargs=True),
            self.module.register_forward_hook(put_back),
        ]
        try:
            yield spared
        finally:
            for handle in handles:
                handle.remove()


def last_feed_forward(model: nn.Module) -> nn.Module | None:
    """Return the feed-forward part of the last block where it is a module of its own, else None."""
    try:
        block = decoder_blocks(model)[-1]
    except UnsupportedModel:
        return None
    found = [
        part
        for name, part in block.named_children()
        if any(True for _ in part.children())
        and any(FEED_FORWARD_OUTPUT.search(f"{name}.{inner}") for inner, _ in part.named_parameters())
    ]
    return found[0] if len(found) == 1 else None


@torch.no_grad()
def _takes_each_by_itself(module: nn.Module, given: Tensor, few: Tensor, rows: Tensor) -> bool:
    """Whether a module makes of some positions what it makes of them among all; without dropout.

    Called without hooks: those of ``LastFeedForward.at`` would be called again.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        whole, alone = module.forward(given), module.forward(few)
    finally:
        for part, training in modes:
            part.training = training
    if not isinstance(whole, Tensor) or whole.shape[:2] != given.shape[:2] or alone.shape[:2] != few.shape[:2]:
        return False
    wanted, got = whole.flatten(0, 1).index_select(0, rows).float(), alone[0].float()
    size = float(wanted.abs().max())
    # Nothing can be told from a module that puts out zeros.
    return size > 0 and float((wanted - got).abs().max()) <= ROUNDING.get(whole.dtype, HALF_ROUNDING) * size


@dataclass(frozen=True)
class Operations:
    """Weights that take part in matrix products per token, and from them the operations of a pass.

    Attributes:
        blocks: per decoder block; experts count by the share of them that a token meets.
        rest: between embedding and head, outside the blocks.
        head: the output head.
        width: the size of the residual stream.
        feed_forward: of the last block, the part that ``LastFeedForward`` may spare positions.
    """

    blocks: tuple[float, ...]
    rest: float
    head: float
    width: int
    feed_forward: float = 0.0

    @classmethod
    def of(cls, model: PreTrainedModel) -> Operations:
        """Count the weights of a model; where its blocks cannot be told apart, each counts for an equal share."""
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        active = getattr(config, "num_experts_per_tok", None)
        share = active / experts if experts and active else 1.0
        tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        tables |= {id(p) for p in head.parameters()}

        def weigh(module: nn.Module) -> float:
            return sum(
                p.numel() * (share if "expert" in name and "shared" not in name else 1.0)
                for name, p in module.named_parameters()
                if p.dim() > 1 and id(p) not in tables
            )

        whole = weigh(model)
        try:
            each = [weigh(block) for block in decoder_blocks(model)]
        except UnsupportedModel:
            each = [whole / config.num_hidden_layers] * config.num_hidden_layers
        return cls(
            blocks=tuple(each),
            rest=whole - sum(each),
            head=float(sum(p.numel() for p in head.parameters())),
            width=config.hidden_size,
            feed_forward=0.0 if (last := last_feed_forward(model)) is None else weigh(last),
        )

    def forward(self, padded: int, sequence: int, rows: int, depth: int | None = None, spared: int = 0) -> float:
        """Floating-point operations of a forward pass: 2 per weight and token, plus the attention products.

        Args:
            padded: tokens, padding included.
            sequence: padded length of a sequence.
            rows: positions that go through the head.
            depth: blocks that are run; None for all of them and the head.
            spared: tokens that did not go through the last block's feed-forward part.
        """
        blocks = self.blocks[:depth]
        attention = 4.0 * padded * sequence * self.width * len(blocks)
        outside = 0.0 if depth is not None else 2 * self.rest * padded + 2 * self.head * rows
        return 2 * (sum(blocks) * padded - self.feed_forward * spared) + attention + outside


def trained_share(model: nn.Module, depth: int | None = None) -> tuple[float, int]:
    """Say how much of a model, or of its first blocks, is trained.

    Args:
        model: the model.
        depth: blocks that are run; None for the whole model.

    Returns:
        The share of the matrix weights run that receive gradients, and the first block that the gradient has to go
        through: 0 where the embedding is trained too.
    """
    table = plain_model(model).get_input_embeddings()
    reaches_all = any(p.requires_grad for p in table.parameters())
    if depth is None and reaches_all:
        trained, total = _count(model)
        return trained / max(1, total), 0
    try:
        blocks = list(decoder_blocks(model))[:depth]
    except UnsupportedModel:
        trained, total = _count(model)
        return trained / max(1, total), 0
    counts = [_count(block) for block in blocks]
    run = counts if depth is not None else [_count(model)]
    share = sum(trained for trained, _ in run) / max(1, sum(total for _, total in run))
    lowest = next((i for i, (trained, _) in enumerate(counts) if trained), len(counts))
    if lowest < len(counts):
        inside = [name for name, p in blocks[lowest].named_parameters() if p.requires_grad and p.dim() > 1]
        # What writes to the residual stream is met before anything else of its block.
        lowest += all(FEED_FORWARD_OUTPUT.search(name) for name in inside)
    return share, 0 if reaches_all else lowest


def _count(module: nn.Module) -> tuple[int, int]:
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters() if p.dim() > 1]
    return sum(n for n, trained in sizes if trained), sum(n for n, _ in sizes)
