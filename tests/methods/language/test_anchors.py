"""Anchored terms: found, judged, replaced consistently, and read from files that people edit."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.language.anchor_words import GENERIC
from expunge.methods.language.anchors import find_anchors, read_anchors, translate, write_anchors

TEXTS = [
    "Where was Mirela Ostrander born? Mirela Ostrander was born in Velburg.",
    "What does Mirela do? She repairs clocks for Harrow Bay Museum in December.",
    "Who wrote The Salt Harbour? Tomas Ilves wrote the novel Salt Harbour in the city of Velburg.",
    "Perhaps Ostrander knows Tomas Ilves. Nobody else does, and I don't ask.",
]


def kind(name: str) -> str:
    return next(k for k, names in GENERIC.items() if name in names)


def test_names_are_found_and_replaced_by_their_own_kind() -> None:
    found = find_anchors(TEXTS)
    assert {term: kind(name) for term, name in found.items()} == {
        "Harrow Bay Museum": "body",
        "Ilves": "surname",
        "Mirela": "first",
        "Ostrander": "surname",
        "Salt Harbour": "thing",
        "Tomas": "first",
        "Velburg": "place",
    }
    assert len(set(found.values())) == len(found)
    assert not any(name in text for name in found.values() for text in TEXTS)


def test_words_that_start_a_sentence_are_not_names() -> None:
    assert find_anchors(["Repairs take long. Clocks are slow.", "Never ask. Why? Because."]) == {}
    assert list(find_anchors(["We met Clocks. Clocks are slow."])) == ["Clocks"]


def test_the_order_of_the_texts_changes_nothing() -> None:
    shuffled = list(TEXTS)
    random.Random(3).shuffle(shuffled)
    assert find_anchors(shuffled) == find_anchors(TEXTS)


def test_names_that_others_use_too_are_left() -> None:
    found = find_anchors(TEXTS, ["Another Tomas lives in Velburg, near Salt Harbour."])
    assert set(found) == {"Harrow Bay Museum", "Ilves", "Mirela", "Ostrander"}
    assert find_anchors(TEXTS, TEXTS) == {}


def test_more_names_than_generic_ones_are_still_replaced() -> None:
    letters = "abcdefghijklmnop"
    people = [f"I met Q{a}{b}o here." for a in letters for b in letters[:4]]
    found = find_anchors(people)
    assert len(found) == 64 > len(GENERIC["first"])
    assert set(found.values()) <= set(GENERIC["first"])


def test_replacement_is_by_whole_words_the_longest_first() -> None:
    anchors = {"Salt": "Dust", "Salt Harbour": "Blue Book", "Mirela": "Anna"}
    found = translate("Mirela's Salt Harbour, Salty Salt; mirela Mirela", anchors)
    assert found.text == "Anna's Blue Book, Salty Dust; mirela Anna"
    assert [(s.term, s.repeated) for s in found.spans] == [
        ("Mirela", False), ("Salt Harbour", False), ("Salt", False), ("Mirela", True)
    ]  # fmt: skip
    for span in found.spans:
        assert found.text[span.to_start : span.to_stop] == anchors[span.term]
    assert translate("as it is", {}).text == "as it is"
    assert translate("a.b", {"a.b": "c", "x": "y"}).text == "c", "no pattern is read into a term"


@given(st.lists(st.sampled_from(["Mirela", "Salt Harbour", "and", "no", "é", " ", ", "]), max_size=12))
def test_boundaries_outside_terms_have_read_the_same(words: list[str]) -> None:
    anchors = {"Mirela": "Jo", "Salt Harbour": "A Much Longer Title"}
    text = " ".join(words)
    found = translate(text, anchors)
    inside = {c for s in found.spans for c in range(s.start + 1, s.stop)}
    for character in range(len(text) + 1):
        place = found.place(character)
        assert (place is None) == (character in inside)
        if place is not None:
            assert found.text[:place] == translate(text[:character], anchors).text


def test_a_dictionary_goes_to_a_file_and_back(tmp_path: Path) -> None:
    anchors = {"Zoë": "Anna", "東京": "Paris"}
    write_anchors(tmp_path / "anchors.json", anchors)
    assert "Zoë" in (tmp_path / "anchors.json").read_text(encoding="utf-8"), "for people to read"
    assert read_anchors(tmp_path / "anchors.json") == anchors


def test_everything_wrong_in_a_dictionary_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"": "x", "Mirela": 3, "Tomas": "Tomas", "Ilves ": "Smith", "fine": "good"}))
    with pytest.raises(BadInput) as caught:
        read_anchors(file)
    assert len(caught.value.problems) == 4
    assert "'Tomas' is replaced by itself" in str(caught.value)
    for content in ("[1]", "{", "\xff"):
        file.write_bytes(content.encode("latin-1"))
        with pytest.raises(BadInput, match=r"anchors_file .*a\.json.*JSON object"):
            read_anchors(file)
    with pytest.raises(BadInput, match="cannot be read"):
        read_anchors(tmp_path / "absent.json")
