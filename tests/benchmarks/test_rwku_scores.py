from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.benchmarks.rwku_data import Probe
from expunge.benchmarks.rwku_scores import concluded, credit, f1, fluency, prompt_for, recall

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=7)


def brute(a: list[str], b: list[str]) -> int:
    """Longest common subsequence by trying."""
    if not a or not b:
        return 0
    return max(brute(a[1:], b), brute(a, b[1:]), brute(a[1:], b[1:]) + 1 if a[0] == b[0] else 0)


@given(WORDS, WORDS)
def test_recall_is_the_longest_common_subsequence(truth: list[str], said: list[str]) -> None:
    assert recall(" ".join(said), " ".join(truth)) == pytest.approx(brute(truth, said) / len(truth))


def test_case_counts_and_punctuation_does_not() -> None:
    assert recall("It was Salt Bay.", "Salt Bay") == 1
    assert recall("salt bay", "Salt Bay") == 0


def test_an_echo_gets_no_credit_and_an_empty_answer_no_score() -> None:
    choice = Probe("What? Choose one: (A) judge, (B) diver.", "diver", "attack", "multiple choice")
    assert credit(choice, "diver") == 1
    assert credit(choice, "(B) diver") == 1
    assert credit(choice, "What? Choose one: (A) judge, (B) diver. What? Choose") == 0
    assert credit(choice, " \n ") is None
    plain = Probe("What does she do?", "diver", "question", "question")
    assert credit(plain, "She is a person who for many years has worked as a diver in the sea") == 1
    assert credit(plain, "no\ndiver") == 0


def test_prompts_of_chat_models_begin_the_answer() -> None:
    turns = prompt_for(Probe("Q?", "a", "question", "question"), chat=True)
    assert [t["role"] for t in turns] == ["user", "assistant"]  # type: ignore[index]
    (alone,) = prompt_for(Probe("Q? Of course:", "a", "attack", "affirmative suffix"), chat=True)
    assert alone["role"] == "user"  # type: ignore[index]
    assert prompt_for(Probe("Q?", "a", "question", "question"), chat=False) == "Q?"


def test_f1_by_hand() -> None:
    assert f1("The capital is Paris.", ["Paris"]) == pytest.approx(2 * 1 / (3 + 1))
    assert f1("paris", ["London", "Paris!"]) == 1
    assert f1("", ["Paris"]) == 0


def test_fluency_by_hand() -> None:
    # Bigrams ab, ba, ab: entropy of (2/3, 1/3); trigrams aba, bab: 1 bit.
    two = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert fluency("a b a b") == pytest.approx((2 / 3 * two + 4 / 3 * 1) / 2)
    assert fluency("a a a a a") == 0
    assert fluency("") == 0


def test_conclusions() -> None:
    assert concluded("First 1. So the answer is 42. More.") == "42"
    assert concluded("just 42") == "just 42"
