"""Texts for classifiers: tokens padded on the right, masks known from lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.tasks.text_inputs import TextInputs

TEXTS = Dataset.from_dict({"text": ["Velburg", "Tomas moved from Velburg to Harrow Bay"]})


def test_a_batch_is_padded_and_masked(tiny_tokenizer: Any) -> None:
    inputs = TextInputs(tiny_tokenizer)
    rows = inputs.encode(TEXTS)
    batch = inputs.batch(rows, torch.device("cpu"))
    assert batch["attention_mask"].sum(1).tolist() == [len(row) for row in rows]
    assert batch["input_ids"][0, len(rows[0]) :].eq(inputs.pad_id).all()
    assert torch.equal(batch["input_ids"][1], rows[1])


def test_padding_that_doubles_as_end_of_sequence_is_safe(make_tiny_tokenizer: Any) -> None:
    inputs = TextInputs(make_tiny_tokenizer(pad_is_eos=True))
    rows = [torch.tensor([5, inputs.pad_id]), torch.tensor([5, 6, 7])]
    assert inputs.batch(rows, torch.device("cpu"))["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_long_texts_are_cut(tiny_tokenizer: Any) -> None:
    assert max(map(len, TextInputs(tiny_tokenizer, max_length=4).encode(TEXTS))) == 4


def test_texts_that_are_none_are_named(tiny_tokenizer: Any) -> None:
    with pytest.raises(BadInput, match=r"2 text\(s\) are empty or no text: example 1; example 2"):
        TextInputs(tiny_tokenizer).encode(Dataset.from_dict({"text": ["", None, "x"]}))
    with pytest.raises(BadInput, match="column 'text': is not there; there are words"):
        TextInputs(tiny_tokenizer).encode(Dataset.from_dict({"words": ["x"]}))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no tokenizer"):
        TextInputs.read(tmp_path)
