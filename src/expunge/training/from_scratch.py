"""Small causal language models trained from nothing: the embedded default and benchmark models of our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import Field, PositiveInt
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import Progress, TrainResult, train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import Strict, TrainSettings


class Shape(Strict):
    """Size of a small Llama-architecture model."""

    hidden: PositiveInt = Field(128, description="hidden size")
    layers: PositiveInt = Field(4, description="decoder layers")
    heads: PositiveInt = Field(4, description="attention heads")
    context: PositiveInt = Field(256, description="longest sequence in tokens")
    tied: bool = Field(True, description="share input and output embeddings")


def small_llama(tokenizer: PreTrainedTokenizerBase, shape: Shape, seed: int) -> CausalLM:
    """Return a Llama-architecture model with fresh weights that depend on the seed alone.

    Args:
        tokenizer: gives the vocabulary and the special tokens.
        shape: sizes.
        seed: of the weights.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=int(shape.hidden * 8 / 3 / 8) * 8,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = AutoModelForCausalLM.from_config(config)
    return CausalLM(model, tokenizer, source=f"small Llama trained from scratch, seed {seed}")


def train_small_llama(
    examples: Sequence[Dataset],
    tokenizer: PreTrainedTokenizerBase,
    shape: Shape,
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> tuple[CausalLM, TrainResult]:
    """Train a small model on the answers of all examples.

    Args:
        examples: canonical example sets; what is not in them the model never sees.
        tokenizer: the tokenizer.
        shape: sizes of the model.
        settings: of the loop; its seed also makes the fresh weights.
        folder: for the log and resumable checkpoints.
        progress: called after every step.

    Returns:
        The model and what the loop did.
    """
    model = small_llama(tokenizer, shape, settings.seed)
    encoded = model.encode(examples[0])
    for more in examples[1:]:
        encoded = encoded + model.encode(more)
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    result = train(model, objective, {"retain": encoded}, settings, folder=folder, progress=progress)
    return model, result
