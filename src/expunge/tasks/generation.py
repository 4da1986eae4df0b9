"""Greedy or sampled generation that stops working on a row as soon as the row is finished."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.errors import BrokenScores

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

# Rows per batch, and the share of finished rows at which the batch is cut down to the living ones.
ROWS = 64
COMPACT_AT = 0.25


def generate(
    task: CausalLM,
    prompts: list[list[int]],
    limits: list[int],
    *,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
) -> list[list[int]]:
    """Continue token prompts until each row ends.

    Rows are sorted by prompt length and limit; when a quarter of a batch has finished, the cache is cut down to the
    rows that have not.

    Args:
        task: the model, already in evaluation mode without gradients.
        prompts: token ids per row.
        limits: most new tokens per row.
        temperature: 0 takes the most probable token; above, tokens are drawn from softmax(logits / temperature).
        seeds: per row, of its draws; not read at temperature 0.

    Returns:
        The new tokens per row, without the end of sequence.

    Raises:
        BrokenScores: a prediction is NaN or infinite. What follows from it is no text of the model's.
    """
    out: list[list[int]] = [[] for _ in prompts]
    luck = None
    if temperature > 0:
        luck = [uniforms(s, p, n) for s, p, n in zip(seeds, prompts, limits, strict=True)]
    order = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: (limits[i], len(prompts[i]), i))
    for start in range(0, len(order), ROWS):
        _continue(task, order[start : start + ROWS], prompts, limits, out, temperature, luck)
    return out


def uniforms(seed: int, prompt: Sequence[int], count: int) -> NDArray[np.float64]:
    """Return the numbers in [0, 1) that a row's tokens are drawn with; they follow from seed and prompt alone."""
    digest = hashlib.blake2b(f"{seed} {list(prompt)}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)


def sample(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Draw one token per row from softmax(logits / temperature) by inverting its distribution function.

    Args:
        logits: (B, V).
        temperature: above 0.
        uniform: (B,) float64 numbers in [0, 1).

    Returns:
        (B,) int64 tokens; the first whose cumulated probability exceeds the row's number.
    """
    # float64: rounding in a sum over a large vocabulary would otherwise reach the size of a rare token.
    cumulated = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    chosen = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp_max(logits.shape[-1] - 1)


def _continue(
    task: CausalLM,
    rows: list[int],
    prompts: list[list[int]],
    limits: list[int],
    out: list[list[int]],
    temperature: float,
    luck: list[NDArray[np.float64]] | None,
) -> None:
    model, device = task.model, task.device
    ends = _end_ids(task)
    width = max(len(prompts[i]) for i in rows)
    tokens = torch.full((len(rows), width), task.encoder.pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for k, i in enumerate(rows):
        tokens[k, width - len(prompts[i]) :] = torch.tensor(prompts[i])
        mask[k, width - len(prompts[i]) :] = 1
    tokens, mask = tokens.to(device), mask.to(device)
    named = inspect.signature(task._plain().forward).parameters
    living = list(rows)
    cache: Any = None
    while living:
        inputs: dict[str, Any] = {
            "input_ids": tokens,
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        if "position_ids" in named:
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            inputs["position_ids"] = positions[:, -tokens.shape[1] :]
        if "logits_to_keep" in named:
            inputs["logits_to_keep"] = 1
        output = model(**inputs)
        task.cost.decode_steps += 1
        task.cost.forwards += int(cache is None)
        task.cost.sequences += len(living) if cache is None else 0
        task.cost.tokens += int(mask.sum()) if cache is None else len(living)
        task.cost.padded_tokens += tokens.numel()
        task.cost.flops += task.operations.forward(tokens.numel(), 0, len(living))
        cache = getattr(output, "past_key_values", None)
        logits = output.logits[:, -1]
        best, chosen = logits.max(-1)
        # The first of several NaNs would pass for a token, and its text for one that the model chose to say.
        if bad := sum(i >= 0 and not fine for i, fine in zip(living, best.isfinite().tolist(), strict=True)):
            raise BrokenScores(
                f"the model gives NaN or infinite logits where it continues {bad} of {len(rows)} prompts"
            )
        if luck is not None:
            drawn = [luck[i][len(out[i])] if i >= 0 else 0.0 for i in living]
            chosen = sample(logits, temperature, torch.tensor(drawn, dtype=torch.float64, device=device))
        keep = []
        for k, token in enumerate(chosen.tolist()):
            if living[k] >= 0:
                if token in ends:
                    living[k] = -1
                else:
                    out[living[k]].append(token)
                    if len(out[living[k]]) >= limits[living[k]]:
                        living[k] = -1
            if living[k] >= 0:
                keep.append(k)
        if not keep:
            return
        index = None
        if len(keep) <= (1 - COMPACT_AT) * len(living) and (cache is None or hasattr(cache, "batch_select_indices")):
            index = torch.tensor(keep, device=device)
            chosen, mask = chosen[index], mask[index]
            living = [living[k] for k in keep]
        if cache is None:  # recurrent models keep their state elsewhere: read the whole text again
            tokens = torch.cat([tokens if index is None else tokens[index], chosen[:, None]], dim=1)
        else:
            if index is not None:
                cache.batch_select_indices(index)
            tokens = chosen[:, None]
        mask = torch.cat([mask, mask.new_ones(len(living), 1)], dim=1)


def _end_ids(task: CausalLM) -> set[int]:
    """Return every token that ends a row: the tokenizer's, and those of the model's generation settings."""
    settings = getattr(getattr(task._plain(), "generation_config", None), "eos_token_id", None)
    extra = settings if isinstance(settings, list) else [settings]
    return {task.encoder.eos_id, *(e for e in extra if isinstance(e, int))}
