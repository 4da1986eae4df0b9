from __future__ import annotations

import pytest
from datasets import Dataset

from expunge.methods.general.concept_words import name_words, overwrite, poisoned_texts, top_words, word_contributions
from expunge.requests.request import DeletionRequest, example_id


def examples(*rows: tuple[str, str, str]) -> Dataset:
    made = [{"prompt": p, "answer": a, "group": g} for p, a, g in rows]
    return Dataset.from_list([{"id": example_id(row), **row} for row in made])


REQUEST = DeletionRequest(
    examples(("Where was Ann born?", "Ann was born in Velburg.", "Ann Lee"), ("Ann's pet?", "A parrot.", "Ann Lee")),
    examples(("Where was Bo born?", "Bo was born in Harrow.", "Bo"), ("Bo's pet?", "A tortoise.", "Bo")),
)


def test_tokens_count_for_the_word_that_they_end_in() -> None:
    #       0123456789
    text = "In Velburg, in"
    found = word_contributions(text, [2, 6, 10, 11, 14], [1.0, 2.0, 3.0, 50.0, 4.0])
    assert found == {"in": 5.0, "velburg": 5.0}


def test_the_strongest_words_that_say_something() -> None:
    contributions = {"the": 9.0, "velburg": 2.0, "parrot": 3.0, "gone": -1.0, "x": 8.0, "born": 2.0}
    assert top_words(contributions, 2, frozenset({"the"})) == ["parrot", "born"]


def test_only_whole_words_are_overwritten_whatever_their_case() -> None:
    assert overwrite("Velburg's VELBURG, velburger", {"velburg": "***"}) == "Velburg's ***, velburger"


def test_names_have_their_longer_words() -> None:
    assert name_words("Ann Marie Leeson", ["Bob Tallis"]) == ["tallis", "marie", "leeson"]
    assert name_words(7, []) == []


def test_answers_are_masked_by_group() -> None:
    new, changed = poisoned_texts(REQUEST, {"Ann Lee": ["velburg", "parrot"]}, labels="targeted", mask="***", seed=0)
    assert new["answer"] == ["Ann was born in ***.", "A ***."]
    assert changed == 2
    assert new["id"] == [f"{i}#0" for i in REQUEST.forget["id"]]


def test_random_words_come_from_what_is_kept() -> None:
    words = {"Ann Lee": ["velburg", "parrot"]}
    seen = set()
    for seed in range(20):
        new, _ = poisoned_texts(REQUEST, words, labels="random", mask="***", seed=seed)
        again, _ = poisoned_texts(REQUEST, words, labels="random", mask="***", seed=seed)
        assert new["answer"] == again["answer"]
        seen.add(new["answer"][1].split()[1].rstrip("."))
    assert seen == {"Bo", "born", "Harrow", "tortoise"}


@pytest.mark.parametrize("labels", ["targeted", "random", "keep"])
def test_without_concepts_whole_answers_are_replaced(labels: str) -> None:
    new, changed = poisoned_texts(REQUEST, None, labels=labels, mask="***", seed=0)
    if labels == "keep":
        assert new["answer"] == REQUEST.forget["answer"]
        assert changed == 0
    else:
        assert changed == 2
        known = set(REQUEST.retain["answer"])  # type: ignore[index]
        assert (set(new["answer"]) <= known) == (labels == "random")
