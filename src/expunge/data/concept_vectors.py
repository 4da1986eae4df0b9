"""The file format of ConceptVectors: concepts, where their vectors are, and questions about them.

A JSON list with one object per concept. Read and written as published; what our own search adds (sign, scores, further
vectors) is in extra fields that other readers pass over.

Source: Hong et al. 2024 (arXiv:2406.11614), github.com/yihuaihong/ConceptVectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expunge.errors import BadInput, Problem

REQUIRED = ("Concept", "Layer", "Dim", "QA", "unrelated_QA")


@dataclass(frozen=True)
class ConceptRecord:
    """One concept.

    Attributes:
        name: what it is called.
        vectors: (layer, dim, matrix) of each of its vectors, the published one first; matrix is empty where a layer
            has one output matrix.
        questions: about the concept, stripped of surrounding space.
        unrelated: questions about other concepts.
        completions: (first half, second half) of sentences about it.
        article: a text about it; may be empty.
        extra: any other fields, as they are.
    """

    name: str
    vectors: tuple[tuple[int, int, str], ...]
    questions: tuple[str, ...]
    unrelated: tuple[str, ...]
    completions: tuple[tuple[str, str], ...] = ()
    article: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_concepts(path: str | Path) -> list[ConceptRecord]:
    """Read a file of concepts.

    Raises:
        BadInput: no such file, no JSON list, or records with missing or wrong fields; every problem is named.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(Problem(str(path), f"cannot be read: {error.strerror}", "check the path")) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(
            Problem(str(path), f"is no JSON: {error}", "give a file in the ConceptVectors format")
        ) from error
    if not isinstance(records, list) or not records:
        raise BadInput(Problem(str(path), "holds no list of concepts", "give a file in the ConceptVectors format"))
    problems: list[Problem] = []
    out = []
    for number, record in enumerate(records, 1):
        found = _problems(record, f"{path}: concept {number}")
        problems += found
        if not found:
            out.append(_parse(record))
    if problems:
        raise BadInput(problems)
    return out


def write_concepts(path: str | Path, concepts: Sequence[ConceptRecord]) -> None:
    """Write concepts so that ``read_concepts`` and the published code read them."""
    records = []
    for number, concept in enumerate(concepts):
        (layer, dim, matrix), *further = concept.vectors
        record: dict[str, Any] = {
            "id": number,
            "Concept": concept.name,
            "Layer": layer,
            "Dim": dim,
            "QA": list(concept.questions),
            "text_completion": [{"First_half": a, "Second_half": b} for a, b in concept.completions],
            "unrelated_QA": list(concept.unrelated),
            "wikipedia_content": concept.article,
            **concept.extra,
        }
        if matrix:
            record["Matrix"] = matrix
        if further:
            record["Further"] = [{"Layer": a, "Dim": b, **({"Matrix": m} if m else {})} for a, b, m in further]
        records.append(record)
    path = Path(path)
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def _parse(record: Mapping[str, Any]) -> ConceptRecord:
    known = {*REQUIRED, "text_completion", "wikipedia_content", "Matrix", "Further"}
    vectors = [record, *record.get("Further", ())]
    return ConceptRecord(
        name=record["Concept"],
        vectors=tuple((v["Layer"], v["Dim"], v.get("Matrix", "")) for v in vectors),
        questions=tuple(q.strip() for q in record["QA"]),
        unrelated=tuple(q.strip() for q in record["unrelated_QA"]),
        completions=tuple((p["First_half"], p["Second_half"]) for p in record.get("text_completion", ())),
        article=record.get("wikipedia_content", ""),
        extra={k: v for k, v in record.items() if k not in known},
    )


def _problems(record: Any, where: str) -> list[Problem]:
    if not isinstance(record, dict):
        return [Problem(where, f"is a {type(record).__name__}", "give an object with Concept, Layer, Dim, QA, ...")]
    where = f"{where} ({record['Concept']})" if isinstance(record.get("Concept"), str) else where
    out = [Problem(where, f"has no {name}", "add it") for name in REQUIRED if name not in record]
    places = [record, *(v for v in record.get("Further", ()) if isinstance(v, dict))]
    for place in places:
        for name in ("Layer", "Dim"):
            value = place.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                out.append(Problem(where, f"{name} is {value!r}", "give a whole number from 0 on"))
    for name in ("QA", "unrelated_QA"):
        value = record.get(name, ["-"])
        if not isinstance(value, list) or not value or not all(isinstance(q, str) and q.strip() for q in value):
            out.append(Problem(where, f"{name} is no list of questions", "give at least one question, as text"))
    for pair in record.get("text_completion", ()):
        if not isinstance(pair, dict) or not {"First_half", "Second_half"} <= set(pair):
            out.append(Problem(where, "text_completion has an entry without both halves", "give both, or drop it"))
            break
    if not isinstance(record.get("wikipedia_content", ""), str):
        out.append(Problem(where, "wikipedia_content is no text", "give text, or leave it out"))
    return out
