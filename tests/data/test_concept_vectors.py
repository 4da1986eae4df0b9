"""The ConceptVectors file format: read as published, written so that it reads the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.data.concept_vectors import ConceptRecord, read_concepts, write_concepts
from expunge.errors import BadInput

RECORD = {
    "ID": 4,
    "Concept": "Velburg",
    "Layer": 1,
    "Dim": 7,
    "QA": [" Where is Velburg?\n"],
    "unrelated_QA": ["Who repairs clocks?\n", "Why?"],
    "text_completion": [{"First_half": "Velburg lies", "Second_half": "by the sea"}],
    "wikipedia_content": "Velburg is a town.",
}


def test_a_record_is_read_as_published(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps([RECORD]))
    (concept,) = read_concepts(tmp_path / "c.json")
    assert concept == ConceptRecord(
        "Velburg", ((1, 7, ""),), ("Where is Velburg?",), ("Who repairs clocks?", "Why?"),
        (("Velburg lies", "by the sea"),), "Velburg is a town.", {"ID": 4},
    )  # fmt: skip


def test_what_is_written_reads_the_same(tmp_path: Path) -> None:
    concept = ConceptRecord(
        "Zoë", ((2, 3, "mlp.experts.down_proj[1]"), (0, 5, "")), ("Who?",), ("What?",), extra={"id": 0, "Sign": [-1, 1]}
    )
    write_concepts(tmp_path / "c.json", [concept])
    assert read_concepts(tmp_path / "c.json") == [concept]
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_the_published_file_survives_a_round(real_data: Path, tmp_path: Path) -> None:
    concepts = read_concepts(real_data / "conceptvectors/llama2-7b_concepts_dev.json")
    assert len(concepts) == 10
    assert concepts[0].vectors == ((23, 743, ""),)
    assert all(len(c.questions) == 10 and len(c.unrelated) == 50 for c in concepts)
    assert min(len(c.completions) for c in concepts) == 1
    write_concepts(tmp_path / "c.json", concepts)
    again = read_concepts(tmp_path / "c.json")
    assert [(c.name, c.vectors, c.questions, c.article) for c in again] == [
        (c.name, c.vectors, c.questions, c.article) for c in concepts
    ]


def test_every_problem_is_named(tmp_path: Path) -> None:
    bad = [{**RECORD, "Layer": -1, "QA": []}, {k: v for k, v in RECORD.items() if k != "Dim"}, "x"]
    (tmp_path / "c.json").write_text(json.dumps(bad))
    with pytest.raises(BadInput) as error:
        read_concepts(tmp_path / "c.json")
    text = str(error.value)
    assert "concept 1 (Velburg): Layer is -1" in text
    assert "concept 1 (Velburg): QA is no list of questions" in text
    assert "concept 2 (Velburg): has no Dim" in text
    assert "concept 3: is a str" in text


@pytest.mark.parametrize(("text", "words"), [("{", "is no JSON"), ("{}", "no list of concepts"), ("[]", "no list")])
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(BadInput, match=words):
        read_concepts(tmp_path / "c.json")
    with pytest.raises(BadInput, match="cannot be read"):
        read_concepts(tmp_path / "none.json")
