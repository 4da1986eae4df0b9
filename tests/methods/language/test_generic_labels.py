"""Rows of a text and of its translation: matched by what has been read, not by their index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.language.anchors import translate
from expunge.methods.language.generic_labels import (
    Facts,
    align_example,
    openings_of,
    read_labels,
    translated_logits,
    write_labels,
)
from expunge.tasks.causal_lm import CausalLM

MakeTask = Callable[..., CausalLM]
ANCHORS = {"Mirela": "Jo", "Velburg": "San Francisco City", "Harrow Bay": "Rome"}
ROWS: list[dict[str, Any]] = [
    {"prompt": "Where was Mirela born?", "answer": "Mirela was born in Velburg, not in Harrow Bay; yes, Velburg."},
    {"prompt": "", "answer": "Harrow Bay is far from Velburg."},
    {"prompt": "Who?", "answer": "Nobody that is named."},
    {"prompt": "Zoë's café?", "answer": "Mirela, naïve 👩‍🚀 Mirela"},
]


@pytest.fixture(params=["plain", "bos", "chat"])
def named(request: pytest.FixtureRequest, tiny_model: Any, make_tiny_tokenizer: Any) -> CausalLM:
    options = {} if request.param == "plain" else {request.param: True}
    return CausalLM(tiny_model("llama", vocab=384)[0], make_tiny_tokenizer(**options))


def test_every_row_has_read_the_same_in_both_texts(named: CausalLM) -> None:
    encoded = named.encoder.encode([(r["prompt"], r["answer"]) for r in ROWS])
    matched = 0
    for index, row in enumerate(ROWS):
        text, _, from_chat = named.encoder.render(row["prompt"], row["answer"])
        ids, ends = named.encoder.ends(text, from_chat)
        assert list(encoded.tokens[index][: len(ids)]) == ids
        found = align_example(named, row, encoded, index, ANCHORS)
        spans = translate(text, ANCHORS).spans
        whole, reached = named.encoder.ends(translate(text, ANCHORS).text, from_chat)
        assert list(found.tokens) == whole
        for k, t in enumerate(range(encoded.starts[index] - 1, encoded.length(index) - 1)):
            here = ends[min(t, len(ends) - 1)]
            within = any(s.start < here < s.stop for s in spans)
            assert (found.rows[k] == -1) == within
            if within:
                continue
            expected = translate(text[:here], ANCHORS).text
            assert translate(text, ANCHORS).text[: reached[found.rows[k]]] == expected
            matched += 1
            following = text[here : ends[min(t + 1, len(ends) - 1)]]
            again = any(
                s.repeated and s.start <= here + len(following) - len(following.lstrip()) < s.stop for s in spans
            )
            assert bool(found.repeated[k]) == (again and bool(following))
            assert found.seen[k] == {ANCHORS[s.term] for s in spans if s.start < here}
    assert matched > 40


def test_within_a_character_of_several_tokens_it_is_the_same_piece(named: CausalLM) -> None:
    rows = [
        {"prompt": "", "answer": "Zoë 👩‍🚀 in Kraków, 東京."},
        {"prompt": "Mirela?", "answer": "Mirela, naïve 👩‍🚀 Mirela 東"},
    ]
    encoded = named.encoder.encode([(r["prompt"], r["answer"]) for r in rows])
    for index, row in enumerate(rows):
        # Where nothing is replaced, every row is its own counterpart.
        same = align_example(named, row, encoded, index, {})
        assert same.rows.tolist() == list(range(encoded.starts[index] - 1, encoded.length(index) - 1))
        # Elsewhere the counterpart has read the same tokens since the last name.
        found = align_example(named, row, encoded, index, ANCHORS)
        tokens = encoded.tokens[index].tolist()
        for t, place in zip(same.rows, found.rows, strict=True):
            if place >= 3 and t >= 3 and "Mirela" not in named.tokenizer.decode(tokens[t - 3 : t + 1]):
                assert found.tokens[place] == tokens[t]


def test_logits_of_the_translation_come_to_the_rows_of_the_original(named: CausalLM) -> None:
    encoded = named.encoder.encode([(r["prompt"], r["answer"]) for r in ROWS])
    aligned = [align_example(named, row, encoded, i, ANCHORS) for i, row in enumerate(ROWS)]
    with torch.no_grad():
        plain = named.statistics(encoded).logits
        found = translated_logits(named, plain, aligned)
        first = 0
        for index, one in enumerate(aligned):
            logits = named.model(torch.from_numpy(one.tokens)[None]).logits[0]
            for k, row in enumerate(one.rows):
                expected = logits[row] if row >= 0 else plain[first + k]
                torch.testing.assert_close(found[first + k], expected, atol=1e-4, rtol=1e-4)
            first += len(one.rows)
            if index == 2:
                torch.testing.assert_close(
                    found[first - len(one.rows) : first], plain[first - len(one.rows) : first], atol=1e-4, rtol=1e-4
                )
    assert first == len(found)


def test_what_the_context_cuts_off_has_no_counterpart(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer, max_length=24)
    row = {"prompt": "", "answer": "Velburg " * 8 + "is where it all began and where it will end"}
    encoded = task.encoder.encode([("", row["answer"])])
    found = align_example(task, row, encoded, 0, ANCHORS)
    assert len(found.tokens) == 23
    assert (found.rows < 23).all()
    assert (found.rows >= 0).any()
    assert found.rows[-1] == -1, "the longer names have pushed it out"


def test_openings_are_first_tokens_in_both_places(task: CausalLM) -> None:
    ids = {task.tokenizer(text)["input_ids"][0] for text in ("Velburg", " Velburg")}
    assert openings_of(task, "Velburg") == ids


def test_labels_are_kept_for_the_run_that_they_are_of(tmp_path: Path) -> None:
    file, labels = tmp_path / "labels.safetensors", [np.array([1, -100]), np.array([3])]
    facts = Facts(rows=3, changed=0.1 + 0.2, generic=2, masked=1, anchors=4)
    assert read_labels(file, "key", ["a", "b"]) is None
    write_labels(file, "key", ["a", "b"], labels, facts)
    kept = read_labels(file, "key", ["b", "a"])
    assert kept is not None
    assert [v.tolist() for v in kept[0]] == [[3], [1, -100]]
    assert kept[1] == facts, "to the last bit"
    assert read_labels(file, "another", ["a", "b"]) is None
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    file.write_bytes(b"\x08")
    with pytest.raises(BadInput, match=r"labels\.safetensors: is damaged"):
        read_labels(file, "key", ["a"])
