"""The pool of other answers: who gets which, from where, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from expunge.errors import BadInput
from expunge.methods.alternatives import REFUSALS, alternatives, column_answers, file_answers
from expunge.methods.language.dpo import DPO
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import own_alternatives


def forget_set(count: int = 3, **columns: list[Any]) -> Dataset:
    rows: dict[str, list[Any]] = {
        "id": [f"{i:04x}" for i in range(count)],
        "prompt": [f"Who is number {i}?" for i in range(count)],
        "answer": [f"Number {i}." for i in range(count)],
    }
    return Dataset.from_dict({**rows, **columns})


def test_the_refusals_are_many_different_and_one_line_each() -> None:
    assert len({text.casefold() for text in REFUSALS}) == len(REFUSALS) >= 60
    assert all(text == text.strip() and "\n" not in text and text.endswith(".") for text in REFUSALS)


def test_every_question_gets_every_answer_under_an_id_of_its_own(task: CausalLM) -> None:
    forget = forget_set()
    pool = alternatives(forget, [["No.", "Why?"]] * 3)
    assert pool["id"] == [f"{i:04x}#{k}" for i in range(3) for k in range(2)]
    assert pool["answer"] == ["No.", "Why?"] * 3
    assert pool["prompt"] == [p for p in forget["prompt"] for _ in range(2)]
    own = own_alternatives(task.encode(forget), task.encode(pool))
    assert own == {"0000": [0, 1], "0001": [2, 3], "0002": [4, 5]}


def test_chat_turns_are_carried() -> None:
    turns = [[{"role": "user", "content": f"Who is {i}?"}] for i in range(3)]
    assert alternatives(forget_set(messages=turns), [["No."]] * 3)["messages"] == turns


def test_the_answer_itself_is_not_another_one() -> None:
    pool = alternatives(forget_set(), [["number  0.", "No."], ["No.", " "], ["No.", "Number 0."]])
    assert pool["id"] == ["0000#1", "0001#0", "0002#0", "0002#1"]
    with pytest.raises(BadInput, match=r"2 example.*example 1; example 3"):
        alternatives(forget_set(), [["Number 0."], ["No."], []])


def test_fewer_per_example_are_chosen_by_id_and_answer_alone() -> None:
    forget = forget_set(20)
    few = alternatives(forget, [REFUSALS] * 20, 4)
    met: dict[str, set[str]] = {identity: set() for identity in forget["id"]}
    for row in few.to_list():
        met[row["id"].partition("#")[0]].add(row["answer"])
    assert {len(texts) for texts in met.values()} == {4}
    assert len(set.union(*met.values())) > 30, "different questions meet different refusals"
    turned = alternatives(forget.select(range(19, -1, -1)), [REFUSALS[::-1]] * 20, 4)
    assert {(r["id"].partition("#")[0], r["answer"]) for r in turned.to_list()} == {
        (r["id"].partition("#")[0], r["answer"]) for r in few.to_list()
    }
    assert len(alternatives(forget, [["No.", "Why?"]] * 20, 4)) == 40


def test_a_column_holds_texts_or_lists_of_texts() -> None:
    assert column_answers(forget_set(other=["a", "b", "c"]), "other") == [["a"], ["b"], ["c"]]
    assert column_answers(forget_set(other=[["a"], ["b", "d"], ["c"]]), "other")[1] == ["b", "d"]
    with pytest.raises(BadInput, match=r"no column 'othr'.*did you mean other"):
        column_answers(forget_set(other=["a", "b", "c"]), "othr")
    with pytest.raises(BadInput, match=r"2 row\(s\): example 1; example 3"):
        column_answers(forget_set(other=[[], ["b"], ["c", " "]]), "other")
    with pytest.raises(BadInput, match=r"3 row\(s\)"):
        column_answers(forget_set(other=[1, 2, 3]), "other")


def test_a_file_holds_one_answer_per_line(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("\ufeffNo.\r\n\n  Näh.  \n", encoding="utf-8")
    assert file_answers(str(file)) == ["No.", "Näh."]
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadInput, match="cannot be read"):
        file_answers(str(file))
    file.write_text("\n \n")
    with pytest.raises(BadInput, match="has no answer in it"):
        file_answers(str(file))
    with pytest.raises(BadInput, match=r"absent.txt.*cannot be read"):
        file_answers(str(tmp_path / "absent.txt"))


def pool(forget: Dataset, **config: Any) -> Dataset:
    return DPO(DPO.Config(**config)).make_answers(None, forget)


def test_each_source_replaces_the_refusals(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("From a file.\n")
    forget = forget_set(own=["x", "y", "z"])
    assert set(pool(forget)["answer"]) == set(REFUSALS)
    assert pool(forget, answers=("One.", "Two."))["answer"] == ["One.", "Two."] * 3
    assert pool(forget, answers_file=str(tmp_path / "answers.txt"))["answer"] == ["From a file."] * 3
    assert pool(forget, answers_column="own")["answer"] == ["x", "y", "z"]
    with pytest.raises(BadInput, match="answers and answers_column"):
        pool(forget, answers=("One.",), answers_column="own")
    with pytest.raises(BadInput, match="1 of them are empty"):
        pool(forget, answers=("One.", " "))


def test_text_without_a_question_needs_a_column() -> None:
    raw = forget_set(prompt=["", "Who?", ""], own=["x", "y", "z"])
    with pytest.raises(BadInput, match=r"2 example.*without a question: example 1; example 3.*answers_column"):
        pool(raw)
    assert pool(raw, answers_column="own")["answer"] == ["x", "y", "z"]
    turns = [[{"role": "user", "content": "Who?"}]] * 3
    assert len(pool(forget_set(prompt=["", "", ""], messages=turns))) == 3 * len(REFUSALS)


def test_every_problem_is_named_before_any_compute(
    task: CausalLM, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "copy", lambda _: pytest.fail("something was computed"))
    with pytest.raises(BadInput) as caught:
        unlearn(task, DeletionRequest(request_.forget), "dpo", settings={"answers_column": "absent"})
    assert [p.where for p in caught.value.problems] == ["method dpo", "answers_column"]
