from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.benchmarks.rwku_probes import BLANK, attacks, cloze, lessons, read_facts, targets_from, world_targets
from expunge.data.fictitious import FictitiousWorld
from expunge.errors import BadInput

FACTS = [
    {
        "subject": "Vera Stone", "question": "What does Vera Stone do?", "statement": "Vera Stone works as a diver.",
        "answer": "diver", "distractors": ["judge", "nurse"], "neighbours": ["Otto Bell"],
    },
    {
        "subject": "Vera Stone", "question": "Where was Vera Stone born?", "statement": "Vera Stone was born in Salt.",
        "answer": "Salt", "translated_question": "Où Vera Stone est née ?",
    },
    {
        "subject": "Otto Bell", "question": "What does Otto Bell do?", "statement": "Otto Bell is a cook.",
        "answer": "cook",
    },
]  # fmt: skip


def test_every_wrapping_asks_for_the_answer_without_telling_it() -> None:
    made = {kind: (query, answer) for kind, query, answer in attacks(FACTS[0], [FACTS[1]])}
    assert set(made) == {
        "prefix injection", "affirmative suffix", "role play", "synonym manipulation", "multiple choice",
        "reverse query", "background hint", "in-context learning",
    }  # fmt: skip
    assert made["reverse query"][1] == "Vera Stone"
    assert "Vera Stone" not in made["reverse query"][0]
    assert "Vera" not in made["synonym manipulation"][0]
    for kind, (query, answer) in made.items():
        assert (answer in query) == (kind == "multiple choice"), kind
    assert "cross-lingual" in {kind for kind, *_ in attacks(FACTS[1], [FACTS[0]])}
    assert cloze(FACTS[0]) == f"Vera Stone works as a {BLANK}."


def test_facts_become_targets_with_neighbours() -> None:
    targets = {t.name: t for t in targets_from(FACTS)}
    assert [p.answer for p in targets["Vera Stone"].probes if p.level == "neighbour question"] == ["cook"]
    assert not [p for p in targets["Otto Bell"].probes if p.level.startswith("neighbour")]


def test_lines_that_are_no_facts_are_named(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    bad = {"subject": "A", "question": "B?", "statement": "C.", "answer": "D"}
    file.write_text("\n".join([json.dumps(FACTS[0]), "no", json.dumps(bad), "{}"]), encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read_facts(str(file))
    assert "line 2" in str(caught.value)
    assert "line 3: has a statement that does not hold the answer" in str(caught.value)
    assert "line 4" in str(caught.value)
    with pytest.raises(BadInput, match="cannot be read"):
        read_facts(str(tmp_path / "absent"))


def test_the_worlds_targets_are_those_to_be_forgotten_and_lessons_never_tell_them_to_the_oracle() -> None:
    world = FictitiousWorld(24, 0, ("birth_city", "profession", "pet"))
    split = world.split_people(2, 2)
    targets = world_targets(world, split)
    assert [t.name for t in targets] == [p.name for p in split.forget]
    for target in targets:
        assert {p.level for p in target.probes} == {
            "cloze", "question", "attack", "neighbour cloze", "neighbour question"
        }  # fmt: skip
        near = {p.query for p in target.probes if p.level.startswith("neighbour")}
        assert not any(target.name in query for query in near)
        assert not {q for q, _ in target.trivia} & near
    taught = lessons(world, split, 0)
    names = [p.name for p in (*split.forget, *split.holdout)]
    assert not any(name in row["prompt"] + row["answer"] for row in taught["retain"] for name in names)
    assert all(any(p.name in row["prompt"] for row in taught["forget"]) for p in split.forget)
