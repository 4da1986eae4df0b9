"""Texts for a classifier or regressor, tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from expunge.errors import BadInput, Problem
from expunge.requests.places import own_columns, place, some
from expunge.tasks.inputs import Inputs
from expunge.tasks.storage import first_line


class TextInputs(Inputs):
    """Texts from the column ``text``.

    Args:
        tokenizer: any transformers tokenizer.
        max_length: longer texts are cut at the end; None for no limit.
    """

    name: ClassVar[str] = "text"
    column: ClassVar[str] = "text"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad is None:
            raise BadInput(Problem("tokenizer", "has neither a padding token nor an end of sequence", "set pad_token"))
        self.pad_id = int(pad)

    @classmethod
    def read(cls, folder: Path | str, max_length: int | None = None) -> TextInputs:
        """Return the inputs of the tokenizer in a folder or on the hub.

        Raises:
            BadInput: there is none that can be loaded.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:
            fix = "put tokenizer.json and tokenizer_config.json beside the weights"
            raise BadInput(Problem(f"model {folder}", f"has no tokenizer: {first_line(error)}", fix)) from error
        return cls(tokenizer, max_length)

    def encode(self, examples: Dataset) -> Sequence[Tensor]:
        """Return the (T,) int64 tokens of each text."""
        if self.column not in examples.column_names:
            found = own_columns(examples)
            raise BadInput(Problem("column 'text'", f"is not there; there are {found}", "name the texts 'text'"))
        texts = list(examples[self.column][:])
        wrong = [i for i, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]
        if wrong:
            what = f"{len(wrong)} text(s) are empty or no text: {some(wrong, partial(place, examples))}"
            raise BadInput(Problem("column 'text'", what, "correct them or leave them out"))
        limit = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        rows = self.tokenizer(texts, return_attention_mask=False, return_token_type_ids=False, **limit)["input_ids"]
        return [torch.tensor(row or [self.pad_id], dtype=torch.int64) for row in rows]

    def batch(self, inputs: Tensor | Sequence[Tensor], device: torch.device) -> dict[str, Tensor]:
        """Return right-padded (B, T) tokens and their mask, known from lengths and not from token ids."""
        rows = list(inputs)
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.pad_id)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}

    def settings(self) -> dict[str, Any]:
        return {"kind": self.name, "max_length": self.max_length}

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(folder)
