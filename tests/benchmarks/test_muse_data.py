from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.benchmarks.muse_data import CORPORA, Corpus, find, load_corpus, pieces, text_examples, write_corpus
from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM

CORPUS = Corpus(
    forget=["He came.", "She left."],
    retain1=["It rained."],
    retain2=["It snowed."],
    holdout=["They sang."],
    verbmem=[("He", "came.")],
    forget_qa=[("Who came?", "He")],
    retain_qa=[("What fell?", "Snow")],
    forget_icl=[("Who?", "X")],
    retain_icl=[],
    private=(["He came."], ["They sang."]),
    scal=[["He came."], ["He came.", "She left."], ["He came.", "She left."], ["He came.", "She left."]],
    sust=[["He came."], ["She left."], ["He came."], ["She left."]],
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_corpus(CORPUS, tmp_path / "books", {"made_from": ["X"]})
    assert load_corpus(find(str(tmp_path), "books")) == CORPUS
    assert find(str(tmp_path / "books"), "news") == str(tmp_path / "books")
    assert json.loads((tmp_path / "books/privleak/retain.json").read_text()) == ["It snowed."]


def test_the_published_variants_are_read(tmp_path: Path) -> None:
    """One plain text instead of a list, rows with a key "text", and no folds, as in the published Books."""
    write_corpus(replace(CORPUS, scal=(), sust=()), tmp_path, {})
    (tmp_path / "raw/forget.json").unlink()
    (tmp_path / "raw/forget.txt").write_text("A whole book.")
    (tmp_path / "raw/retain1.json").write_text(json.dumps([{"text": "It rained."}]))
    corpus = load_corpus(str(tmp_path))
    assert corpus.forget == ["A whole book."]
    assert corpus.retain1 == ["It rained."]
    assert corpus.scal == []


def test_everything_that_is_wrong_is_named(tmp_path: Path) -> None:
    write_corpus(CORPUS, tmp_path, {})
    (tmp_path / "raw/holdout.json").unlink()
    (tmp_path / "raw/retain1.json").write_text("{")
    (tmp_path / "verbmem/forget.json").write_text('[{"prompt": "x"}]')
    with pytest.raises(BadInput) as error:
        load_corpus(str(tmp_path))
    assert {p.where.rpartition(str(tmp_path))[2] for p in error.value.problems} >= {
        "raw/holdout", "/raw/retain1.json", "raw/retain1", "verbmem/forget",
    }  # fmt: skip


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    assert find(None, "news") == CORPORA["news"]
    with pytest.raises(BadInput, match="prepare"):
        find(str(tmp_path), "news")
    write_corpus(CORPUS, tmp_path / "muse/news", {})
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    assert find(None, "news") == str(tmp_path / "muse/news")


def test_long_texts_are_cut_to_the_context(tiny_model, tiny_tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer, max_length=12)
    text = "Mirela Ostrander was born in Velburg and repairs clocks there. " * 3
    cut = pieces(text, model, 10)
    assert "".join(cut) == text
    assert all(model.count_tokens(piece) > 1 for piece in cut)
    examples = text_examples([text, "Short."], model)
    assert len(examples) == len({*cut, "Short."})
    assert max(len(row) for row in model.encode(examples).tokens) <= 12
