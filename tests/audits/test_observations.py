from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from datasets import Dataset

from expunge.audits.base import Audit, Finding
from expunge.audits.observations import Observations
from expunge.errors import BadInput, BrokenScores
from expunge.requests.request import DeletionRequest


class Reader(Audit):
    id: ClassVar[str] = "reader"
    title: ClassVar[str] = "?"
    paper: ClassVar[str] = "none"
    reads = (
        ("forget", "answer"),
        ("forget", "perturbed_answers"),
        ("forget", "paraphrased_prompt"),
        ("nowhere", "answer"),
    )
    generates = ("forget", "retain")

    def run(self, seen: Observations) -> Finding:
        return Finding(self.id)


class Again(Reader):
    id: ClassVar[str] = "again"
    reads = (("retain", "answer"), ("forget", "answer"))


def rows(*pairs: tuple[str, str], **columns: list[Any]) -> Dataset:
    data = {"id": [f"{p}|{a}" for p, a in pairs], "prompt": [p for p, _ in pairs], "answer": [a for _, a in pairs]}
    return Dataset.from_dict({**data, **columns})


def test_a_model_with_other_tokens_is_refused(make_lm: Callable, make_examples: Callable) -> None:
    request, one, other = DeletionRequest(make_examples(range(2))), make_lm(), make_lm(seed=1)
    assert Observations({"unlearned": one, "oracle": other}, request).oracles == ["oracle"]
    other.tokenizer.add_tokens(["one-more"])
    with pytest.raises(BadInput, match="model 'oracle': has another tokenizer than the one under audit"):
        Observations({"unlearned": one, "oracle": other}, request)


def test_each_distinct_sequence_runs_once(scripted: Callable, make_examples: Callable) -> None:
    """4 forget examples have 4 answers, 4 x 3 wrong answers and 4 rephrased prompts; 4 retain answers more: 24.

    Two audits ask for 24 + 8 (the forget answers twice); "original" is the same object as "unlearned" and adds nothing.
    """
    model, oracle = scripted(), scripted()
    seen = Observations(
        {"unlearned": model, "original": model, "oracle": oracle},
        DeletionRequest(make_examples(range(2)), make_examples(range(5, 7))),
    )
    seen.prefetch([Reader(), Again()])
    assert model.score_calls == [24]
    assert oracle.score_calls == [24]
    assert [len(call) for call in model.generate_calls] == [8]
    for name in seen.models:
        assert len(seen.scores(name, "forget")) == 4
        assert all(len(s) == 3 for s in seen.scores(name, "forget", "perturbed_answers").values())
        assert len(seen.generations(name, "retain")) == 4
    assert model.score_calls == [24]
    counts = seen.counts()
    assert set(counts) == {"unlearned", "oracle"}
    assert counts["unlearned"].to_dict() == {
        "sequences_asked": 32,  # twice (4 + 12), under two names
        "sequences_run": 24,
        "generations_asked": 8,
        "generations_run": 8,
        "forwards": 1,
    }


def test_equal_content_runs_once_and_is_kept_by_id(scripted: Callable) -> None:
    forget = rows(("Q", "a"), ("Q", "b"), perturbed_answers=[["b", "c"], ["a"]])
    model = scripted({"a": 1.0, "b": 2.0, "c": 3.0}, {"Q": "said"})
    seen = Observations({"unlearned": model}, DeletionRequest(forget))
    wrong = seen.scores("unlearned", "forget", "perturbed_answers")
    right = seen.scores("unlearned", "forget")
    assert model.score_calls == [3]
    assert {i: [s.nll for s in row] for i, row in wrong.items()} == {"Q|a": [2.0, 3.0], "Q|b": [1.0]}
    assert {i: s.nll for i, s in right.items()} == {"Q|a": 1.0, "Q|b": 2.0}
    assert seen.generations("unlearned", "forget") == {"Q|a": "said", "Q|b": "said"}
    assert len(model.generate_calls[0]) == 1


def test_missing_fields_are_left_out(scripted: Callable) -> None:
    forget = rows(("Q", "a"), ("R", "b"), paraphrased_answer=["A", None], perturbed_answers=[None, ["x", "", " "]])
    seen = Observations({"unlearned": scripted()}, DeletionRequest(forget))
    assert set(seen.scores("unlearned", "forget", "paraphrased_answer")) == {"Q|a"}
    assert {i: len(s) for i, s in seen.scores("unlearned", "forget", "perturbed_answers").items()} == {"R|b": 1}
    assert seen.scores("unlearned", "holdout") == {}
    assert seen.lacks("holdout")
    assert seen.lacks("oracle")
    assert seen.lacks("original")
    assert seen.lacks("perturbed_answers") is None


def test_new_tokens_follow_the_longest_answer_to_a_prompt(scripted: Callable) -> None:
    """The scripted tokenizer counts words: 1.5 * 4 + 8 = 14 for the longer answer to Q, ceil(1.5) + 8 = 10 for R."""
    forget, retain = rows(("Q", "one two"), ("R", "one")), rows(("Q", "one two three four"))
    model = scripted()
    seen = Observations({"unlearned": model}, DeletionRequest(forget, retain))
    seen.generations("unlearned", "forget")
    seen.generations("unlearned", "retain")
    assert model.generate_calls == [[14, 10]]
    fixed = scripted()
    Observations({"unlearned": fixed}, DeletionRequest(forget), max_new_tokens=5).generations("unlearned", "forget")
    assert fixed.generate_calls == [[5, 5]]


def test_raw_text_is_not_continued(scripted: Callable) -> None:
    seen = Observations({"unlearned": scripted()}, DeletionRequest(rows(("", "Once upon a time"), ("Q", "a"))))
    assert set(seen.generations("unlearned", "forget")) == {"Q|a"}


def test_rephrased_prompt_replaces_the_last_user_turn(scripted: Callable) -> None:
    turns = [[{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]]
    forget = rows(("Q", "a"), messages=turns, paraphrased_prompt=["P"])
    seen = Observations({"unlearned": scripted()}, DeletionRequest(forget))
    (pairs,) = seen.examples.pairs("forget", "paraphrased_prompt").values()
    assert [turn["content"] for turn in pairs[0][0]] == ["S", "P"]
    (pairs,) = seen.examples.pairs("forget", "answer").values()
    assert [turn["content"] for turn in pairs[0][0]] == ["S", "Q"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_numbers_are_refused(scripted: Callable, bad: float) -> None:
    seen = Observations({"unlearned": scripted({"b": bad})}, DeletionRequest(rows(("Q", "a"), ("R", "b"))))
    with pytest.raises(BrokenScores, match=r"1 of 2 examples of 'forget'.*R\|b"):
        seen.scores("unlearned", "forget")


def test_limits_draw_the_same_examples_in_any_order(scripted: Callable, make_examples: Callable) -> None:
    examples = make_examples(range(10))
    turned = examples.select(range(19, -1, -1))
    drawn = [
        set(Observations({"unlearned": scripted()}, DeletionRequest(e), limits={"forget": 7}, seed=s).rows("forget"))
        for e, s in ((examples, 0), (turned, 0), (examples, 1))
    ]
    assert len(drawn[0]) == 7
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_cannot_be_observed_is_said_at_once(scripted: Callable) -> None:
    request = DeletionRequest(rows(("Q", "a")))
    with pytest.raises(BadInput) as error:
        Observations({"orakel": scripted()}, request)
    assert len(error.value.problems) == 2
    with pytest.raises(BadInput) as error:
        Observations({"unlearned": scripted()}, request, extra={"forget": rows(("Q", "b"))}, limits={"retain": 0})
    assert len(error.value.problems) == 2


def test_real_scores_agree_with_one_at_a_time(models: dict[str, Any], request_: DeletionRequest) -> None:
    seen = Observations(models, request_)
    seen.prefetch([Reader()])
    forwards = models["unlearned"].cost.forwards
    together = seen.scores("unlearned", "forget")
    assert models["unlearned"].cost.forwards == forwards
    for identity, row in seen.rows("forget").items():
        (alone,) = models["unlearned"].score([(row["prompt"], row["answer"])])
        assert together[identity].log_prob == pytest.approx(alone.log_prob, abs=1e-5)
        assert together[identity].text == row["answer"]
