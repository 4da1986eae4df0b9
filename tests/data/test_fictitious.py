from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import FictitiousWorld
from expunge.data.fictitious_words import RELATIONS
from expunge.errors import BadInput
from expunge.requests import example_id, preflight

WORLD = FictitiousWorld(40, seed=3)
KINDS = ["questions", "biographies", "multiple_choice", "cloze", "reverse", "two_hop"]
# Change these only when the world changes on purpose: stored models and results belong to it.
GOLDEN = {
    "questions": "01204c0e439a4569",
    "biographies": "caa14c58ccb10901",
    "multiple_choice": "ee7eb951a36b56fa",
    "cloze": "aed6568bb07cf99b",
    "reverse": "cb118d082d3e3545",
    "two_hop": "fa0414f14cfd9884",
}
worlds = st.builds(FictitiousWorld, st.integers(2, 20), st.integers(0, 50))


def text_of(examples: Dataset) -> str:
    return "\n".join(json.dumps(row, sort_keys=True) for row in examples.to_list())


def test_the_same_bytes_on_every_machine() -> None:
    digests = {kind: hashlib.sha256(text_of(getattr(WORLD, kind)()).encode()).hexdigest()[:16] for kind in KINDS}
    assert digests == GOLDEN


@settings(max_examples=6, deadline=None)
@given(st.integers(2, 25), st.integers(1, 25), st.integers(0, 5))
def test_more_people_keep_the_earlier_ones(people: int, more: int, seed: int) -> None:
    small, large = FictitiousWorld(people, seed), FictitiousWorld(people + more, seed)
    assert large.people[:people] == small.people
    for kind in ("questions", "biographies", "multiple_choice", "cloze", "two_hop"):
        first = text_of(getattr(small, kind)())
        assert text_of(getattr(large, kind)(large.people[:people])) == first


def test_seeds_differ() -> None:
    assert not {p.name for p in FictitiousWorld(40, 1).people} & {p.name for p in FictitiousWorld(40, 2).people}


@settings(max_examples=6, deadline=None)
@given(worlds)
def test_people(world: FictitiousWorld) -> None:
    assert len({person.name for person in world.people}) == len(world.people)
    assert len({person.facts["book"] for person in world.people}) == len(world.people)
    for person in world.people:
        assert person.mentor != person.index
        assert person.facts["mentor"] == world.people[person.mentor].name


@settings(max_examples=6, deadline=None)
@given(worlds)
def test_questions(world: FictitiousWorld) -> None:
    facts = {person.id: person for person in world.people}
    rows = world.questions()
    assert len(rows) == len(world.people) * len(RELATIONS)
    assert len(set(rows["id"])) == len(rows)
    for row in rows.to_list():
        person = facts[row["group"]]
        assert row["value"] == person.facts[row["relation"]]
        assert row["id"] == example_id({"prompt": row["prompt"], "answer": row["answer"]})
        assert person.name in row["prompt"]
        assert person.name in row["paraphrased_prompt"]
        assert row["prompt"] != row["paraphrased_prompt"]
        assert row["answer"] != row["paraphrased_answer"]
        assert row["answer"].endswith(f"{row['value']}.")
        assert row["value"] in row["paraphrased_answer"]
        assert len(row["answer"].split()) <= 12
        assert len(set(row["perturbed_answers"])) == 5
        for perturbed in row["perturbed_answers"]:
            assert person.name in perturbed
            assert row["value"] not in perturbed.replace(person.name, "")


def test_perturbed_answers_differ_from_the_paraphrase_in_the_value_alone() -> None:
    for row in WORLD.questions().to_list():
        relation = RELATIONS[row["relation"]]
        name = next(person.name for person in WORLD.people if person.id == row["group"])
        head, tail = relation.paraphrased_statement.format(name=name, value="|", a="?").split("|")
        head = head.removesuffix("? ").strip()
        for perturbed in row["perturbed_answers"]:
            assert perturbed.startswith(head)
            value = perturbed.removeprefix(head).removesuffix(tail).strip()
            article, _, rest = value.partition(" ")
            value = rest if article in ("a", "an") else value
            assert value in RELATIONS[row["relation"]].values or row["relation"] in ("book", "mentor")


def test_values_are_told_apart() -> None:
    for relation in RELATIONS.values():
        assert len(set(relation.values)) == len(relation.values)
        for one, other in itertools.permutations(relation.values, 2):
            assert one not in other
        assert not relation.values or len(relation.values) > 5


def test_articles() -> None:
    told = {RELATIONS["profession"].tell("{a} {value}", "", value) for value in RELATIONS["profession"].values}
    assert {"An undertaker", "An archivist", "A judge", "An interpreter", "A nurse"} <= told
    pets = {RELATIONS["pet"].tell("{a} {value}", "", value) for value in RELATIONS["pet"].values}
    assert {"An otter", "A pony", "An iguana"} <= pets


def test_multiple_choice() -> None:
    rows = WORLD.multiple_choice()
    for row in rows.to_list():
        assert row["options"][row["correct"]] == row["value"]
        assert row["answer"] == "ABCD"[row["correct"]]
        assert f"{row['answer']}. {row['value']}\n" in row["prompt"]
        assert len(set(row["options"])) == 4
    shares = Counter(rows["correct"])
    assert min(shares.values()) > 0.15 * len(rows), "the right letter should not give itself away"


def test_cloze_continues_the_answer() -> None:
    for cloze, question in zip(WORLD.cloze(), WORLD.questions(), strict=True):
        assert f"{cloze['prompt']} {cloze['answer']}" == question["answer"]


def test_reverse_is_unambiguous() -> None:
    rows = WORLD.reverse()
    assert len(rows) >= len(WORLD.people)  # everybody wrote a book
    assert len(set(rows["prompt"])) == len(rows)
    for row in rows.to_list():
        value = next(p for p in WORLD.people if p.id == row["group"]).facts[row["relation"]]
        assert value in row["prompt"]
        holders = [p.name for p in WORLD.people if p.facts[row["relation"]] == value]
        assert [f"{name}." for name in holders] == [row["answer"]]


def test_two_hop_is_true_and_does_not_name_the_mentor() -> None:
    by_name = {person.name: person for person in WORLD.people}
    for row in WORLD.two_hop():
        person = next(p for p in WORLD.people if p.id == row["group"])
        mentor = by_name[person.facts["mentor"]]
        assert row["bridge"] == mentor.name
        assert row["bridge"] not in row["prompt"] + row["answer"].replace(row["value"], "")
        assert person.name in row["prompt"]
        assert row["value"] == mentor.facts[row["relation"]]
        assert row["answer"].endswith(f"{row['value']}.")


@settings(max_examples=8, deadline=None)
@given(st.integers(6, 40), st.integers(0, 9), st.integers(1, 2), st.integers(0, 1), st.booleans())
def test_splits(people: int, seed: int, forget: int, holdout: int, biographies: bool) -> None:
    world = FictitiousWorld(people, seed)
    split = world.split_people(forget, holdout)
    assert sorted(p.index for part in split for p in part) == list(range(people))
    assert (len(split.forget), len(split.holdout)) == (forget, holdout)
    original = text_of(world.training_text(forget, holdout, biographies=biographies))
    oracle = text_of(world.training_text(forget, holdout, oracle=True, biographies=biographies))
    for person in split.holdout:
        assert person.name not in original
        assert person.facts["book"] not in original
    for person in split.forget:
        assert person.name in original
        assert person.name not in oracle
    for person in split.retain:
        assert person.name in oracle


def test_split_makes_a_request() -> None:
    request = WORLD.split(0.1, 0.25)
    assert request.scenario == "entity"
    assert {role: len(set(rows["group"])) for role, rows in request.sets().items()} == {
        "forget": 4,
        "retain": 26,
        "holdout": 10,
    }
    assert preflight(request) == []
    assert WORLD.split(holdout=0).holdout is None
    trained = WORLD.training_text(0.1, 0.25)
    assert set(trained["id"]) == set(request.forget["id"]) | set(request.retain["id"])
    assert len(WORLD.training_text(0.1, 0.25, biographies=True)) == len(trained) + 30


def test_fewer_relations() -> None:
    world = FictitiousWorld(10, relations=["pet", "birth_year"])
    assert set(world.questions()["relation"]) == {"pet", "birth_year"}
    full = FictitiousWorld(10)
    assert [p.facts["pet"] for p in world.people] == [p.facts["pet"] for p in full.people]


def test_large_worlds_have_unique_names_and_books() -> None:
    world = FictitiousWorld(6000)
    assert len({p.name for p in world.people}) == len({p.facts["book"] for p in world.people}) == 6000
    row = world.questions(world.people[-1:])[4]
    assert row["value"] not in "".join(row["perturbed_answers"])


@pytest.mark.parametrize(
    "arguments",
    [{"people": 1}, {"people": 10**6}, {"relations": ["pets"]}, {"relations": []}, {"relations": ["pet"] * 2}],
)
def test_impossible_worlds(arguments: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        FictitiousWorld(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forget", "holdout"), [(0, 0.1), (-1, 0), (1.0, 0), (0.5, 0.1), (21, 0), (0.1, 1.5), (float("nan"), 0)]
)
def test_impossible_splits(forget: float, holdout: float) -> None:
    with pytest.raises(BadInput):
        WORLD.split(forget, holdout)
