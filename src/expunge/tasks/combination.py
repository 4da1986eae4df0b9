"""Combining the predictions of several language models: the mathematics, on tensors alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.errors import BadInput, Problem

# How far below the best of the kept tokens those stay that a filter dropped, in nats: enough to decide an argmax.
BELOW = 1e-3
# What the reference implementation gives to tokens that its filter drops while it generates.
DROPPED = -1e3
# Rows of logits are combined in chunks of about this many numbers, small enough for a processor's cache; that changes
# nothing else.
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 26}


@dataclass(frozen=True)
class Combination:
    """How the predictions of several models become one.

    Attributes:
        weights: one per further model; negative ones take away.
        relu: add ``w max(0, z_i - z_0)`` in place of ``w z_i``.
        normalise: combine log-probabilities; those of the further models count from a uniform prediction, so that one
            that predicts nothing in particular changes nothing. Raw logits have an arbitrary offset.
        filter: change only tokens that the main model finds at least this probable, relative to its most probable
            one; 0 changes all.
        min_keep: change at least this many of its most probable tokens, whatever the filter says.
        parity: combine as the reference implementation of ULD does: raw logits, ``int(filter V)`` tokens kept at
            least (with none it keeps all), dropped ones at the main model's logit where text is scored and at -1000
            where it is generated, so that the two come from different distributions.
    """

    weights: tuple[float, ...]
    relu: bool = False
    normalise: bool = True
    filter: float = 0.0
    min_keep: int = 1
    parity: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not all(math.isfinite(w) for w in self.weights):
            problems.append(Problem("weights", f"are {self.weights}", "give finite numbers"))
        if not 0 <= self.filter <= 1:
            problems.append(Problem("filter", f"is {self.filter}", "give a share of the highest probability, 0 to 1"))
        if self.min_keep < 1:
            problems.append(Problem("min_keep", f"is {self.min_keep}", "keep at least 1 token"))
        if problems:
            raise BadInput(problems)


def kept_tokens(log_probs: Tensor, share: float, min_keep: int) -> Tensor:
    """Say which tokens are plausible: at least ``share`` as probable as the most probable, or among the ``min_keep``.

    Args:
        log_probs: (..., V) log-probabilities.
        share: in (0, 1].
        min_keep: at least 1; capped at V.

    Returns:
        (..., V) bool.
    """
    least = log_probs.topk(min(min_keep, log_probs.shape[-1]), dim=-1, sorted=False).values.amin(-1, keepdim=True)
    floor = log_probs.amax(-1, keepdim=True) + math.log(share)
    return log_probs >= torch.minimum(floor, least)


def combine(logits: Sequence[Tensor], rule: Combination, *, generating: bool = False) -> Tensor:
    """Combine the logits of several models into one prediction.

    ``z = z_0 + sum_i w_i z_i`` over the tokens that the filter keeps; the others stay at ``z_0``, but always below
    the most probable one that is kept, so that greedy text never has any of them.

    Args:
        logits: per model (..., V); the main model's come first.
        rule: how.
        generating: whether the prediction is of a text that is being written; only ``parity`` makes a difference.

    Returns:
        (..., V) logits in float32 or better; log-probabilities are their log-softmax.
    """
    if any(z.requires_grad for z in logits) and torch.is_grad_enabled():
        return _combine(logits, rule, generating)
    # A few rows at a time stay in the cache between the dozen passes over them.
    rows = [z.reshape(-1, z.shape[-1]) for z in logits]
    precise = torch.promote_types(logits[0].dtype, torch.float32)
    out = torch.empty(rows[0].shape, dtype=precise, device=rows[0].device)
    step = max(1, CHUNK.get(out.device.type, 1 << 26) // out.shape[-1])
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        out[part] = _combine([z[part] for z in rows], rule, generating)
    return out.reshape(logits[0].shape)


def _combine(logits: Sequence[Tensor], rule: Combination, generating: bool) -> Tensor:
    main, *others = [z.to(torch.promote_types(z.dtype, torch.float32)) for z in logits]
    vocabulary = main.shape[-1]
    normalise = rule.normalise and not rule.parity
    log_probs = torch.log_softmax(main, dim=-1) if normalise or rule.filter else main
    if normalise:
        main, others = log_probs, [torch.log_softmax(z, dim=-1) for z in others]
    combined = main
    for weight, z in zip(rule.weights, others, strict=True):
        combined = torch.add(combined, (z - main).relu() if rule.relu else z, alpha=weight)
    if normalise and not rule.relu:
        combined = combined + sum(rule.weights) * math.log(vocabulary)
    if not rule.filter:
        return combined
    at_least = int(rule.filter * vocabulary) or vocabulary if rule.parity else rule.min_keep
    kept = kept_tokens(log_probs, rule.filter, at_least)
    if rule.parity:
        return torch.where(kept, combined, torch.full_like(main, DROPPED) if generating else main)
    ceiling = combined.masked_fill(~kept, -math.inf).amax(-1, keepdim=True) - BELOW
    return torch.where(kept, combined, torch.minimum(main, ceiling))
