from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from expunge.data import FictitiousWorld, small_tokenizer
from expunge.errors import BadInput

TEXTS = [f"{row['prompt']} {row['answer']}" for row in FictitiousWorld(20).questions()]
TOKENIZER = small_tokenizer(TEXTS, 600)


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER(text)["input_ids"]
    assert TOKENIZER.decode(ids) == text or "<|" in text


def test_does_not_depend_on_order() -> None:
    shuffled = TEXTS.copy()
    random.Random(1).shuffle(shuffled)
    again = small_tokenizer(shuffled, 600)
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


def test_special_tokens_and_size() -> None:
    assert len(TOKENIZER) == 600
    assert TOKENIZER.bos_token_id == TOKENIZER.eos_token_id != TOKENIZER.pad_token_id
    assert TOKENIZER.eos_token_id not in TOKENIZER("a b")["input_ids"]
    assert len(TOKENIZER("Who is the mentor of")["input_ids"]) == 5


def test_loads_plainly(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded(TEXTS[0])["input_ids"] == TOKENIZER(TEXTS[0])["input_ids"]
    assert loaded.pad_token_id == TOKENIZER.pad_token_id
    assert loaded.is_fast


def test_bad_input_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        small_tokenizer([""], 100)
    assert [problem.where for problem in caught.value.problems] == ["texts", "vocab_size"]
