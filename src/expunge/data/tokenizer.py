"""A tokenizer of one's own, for small models trained from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from expunge.errors import BadInput, Problem

END = "<|endoftext|>"
PAD = "<|pad|>"
SMALLEST = 256 + 2  # every byte, and the two special tokens


def small_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (as GPT-2's; Sennrich et al. 2016, Radford et al. 2019).

    Any text can be encoded and comes back unchanged. The result depends on the texts and how often each occurs, not on
    their order.

    Args:
        texts: what to learn from; prompts and answers as they will be joined.
        vocab_size: at most so many tokens, at least 258.

    Returns:
        The tokenizer, with ``<|endoftext|>`` at the beginning and end of text and ``<|pad|>`` for padding. It adds
        neither by itself.

    Raises:
        BadInput: no texts, or a vocabulary too small for the bytes.
    """
    ordered = sorted(texts)
    problems = []
    if not any(ordered):
        problems.append(Problem("texts", "are empty", "give at least one text to learn from"))
    if vocab_size < SMALLEST:
        problems.append(Problem("vocab_size", f"is {vocab_size}", f"give at least {SMALLEST}"))
    if problems:
        raise BadInput(problems)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ordered, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
