"""Greedy generation that stops working on a row as soon as the row is finished."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from expunge.tasks.causal_lm import CausalLM

# Rows per batch, and the share of finished rows at which the batch is cut down to the living ones.
ROWS = 64
COMPACT_AT = 0.25


def greedy(task: CausalLM, prompts: list[list[int]], limits: list[int]) -> list[list[int]]:
    """Continue token prompts with the most probable token until each row ends.

    Rows are sorted by prompt length and limit; when a quarter of a batch has finished, the cache is cut down to the
    rows that have not.

    Args:
        task: the model, already in evaluation mode without gradients.
        prompts: token ids per row.
        limits: most new tokens per row.

    Returns:
        The new tokens per row, without the end of sequence.
    """
    out: list[list[int]] = [[] for _ in prompts]
    order = sorted((i for i in range(len(prompts)) if limits[i] > 0), key=lambda i: (limits[i], len(prompts[i]), i))
    for start in range(0, len(order), ROWS):
        _continue(task, order[start : start + ROWS], prompts, limits, out)
    return out


def _continue(
    task: CausalLM, rows: list[int], prompts: list[list[int]], limits: list[int], out: list[list[int]]
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
        weights = task._matmul_weights
        task.cost.flops += 2 * weights["body"] * tokens.numel() + 2 * weights["head"] * len(living)
        cache = getattr(output, "past_key_values", None)
        chosen: Tensor = output.logits[:, -1].argmax(-1)
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
