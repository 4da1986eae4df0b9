"""The language of symbols: facts follow from axioms, episodes from what is told, and everything from the seed."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.reproductions.symbols import Symbols, SymbolSettings, request_of

SETTINGS = SymbolSettings(
    subjects=12, forgotten=3, unseen=2, classes=4, relations=2, values=5, strangers=6, episodes=40
)  # fmt: skip


@pytest.fixture
def language() -> Symbols:
    return Symbols.make(SETTINGS, 3)


def test_the_seed_makes_the_language(language: Symbols) -> None:
    again, other = Symbols.make(SETTINGS, 3), Symbols.make(SETTINGS, 4)
    assert np.array_equal(language.class_of, again.class_of)
    assert language.episodes("premise") == again.episodes("premise")
    assert language.facts(language.kept) != other.facts(other.kept)


def test_every_fact_follows_from_a_class_and_an_axiom(language: Symbols) -> None:
    axioms = {row["prompt"]: row["answer"] for row in language.axioms()}
    classes = {row["group"]: row["answer"] for row in language.classes(range(14))}
    for row in language.facts(range(14)):
        subject, relation, _ = row["prompt"].split()
        assert axioms[f"{classes[subject]} {relation} ?"] == row["answer"]
        assert row["premises"] == f"{subject} is {classes[subject]} ."
    for row in language.steps(range(14)):
        subject, _, relation, _ = row["prompt"].split()
        first, value = row["answer"].split()
        assert first == classes[subject]
        assert axioms[f"{first} {relation} ?"] == value


@pytest.mark.parametrize("kind", ["premise", "distracted", "reading"])
def test_episodes_are_about_strangers_and_hold_what_it_takes(language: Symbols, kind: str) -> None:
    axioms = {row["prompt"]: row["answer"] for row in language.axioms()}
    for row in language.episodes(kind):
        *told, question = row["prompt"].split(" . ")
        stranger, relation, _ = question.split()
        about = [text.split() for text in told if text.startswith(f"{stranger} ")]
        assert len(about) == 1
        if kind == "reading":
            assert row["answer"] == about[0][2]
        else:
            assert row["answer"] == axioms[f"{about[0][2]} {relation} ?"]
        assert not any(word.startswith("s") for word in row["prompt"].split())


def test_nobody_is_forgotten_kept_and_unseen_at_once(language: Symbols) -> None:
    sets = [set(language.kept), set(language.gone), set(language.strangers)]
    assert sum(map(len, sets)) == len(set().union(*sets)) == 14
    request = request_of(language, language.axioms())
    assert {row["group"] for row in request.forget} == {f"s{s}" for s in language.gone}
    assert request.holdout is not None
    assert {row["group"] for row in request.holdout} == {f"s{s}" for s in language.strangers}


def test_the_tokenizer_has_one_token_per_symbol(language: Symbols) -> None:
    tokenizer = language.tokenizer()
    for row in language.facts(range(14)) + language.episodes("premise"):
        text = f"{row['prompt']} {row['answer']}"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == text.split()
