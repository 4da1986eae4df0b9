"""In-context unlearning: who is shown with which answer, in which order, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.language.in_context import other_answers
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.in_context import InContextLM

MakeTask = Callable[..., CausalLM]


def guard(task: CausalLM, request: DeletionRequest, **settings: Any) -> InContextLM:
    done = unlearn(task, request, "in_context", settings=settings)
    assert done.removal_level == "guard"
    assert done.cost.forwards == 0
    assert isinstance(done.model, InContextLM)
    return done.model


def roomy(make_task: MakeTask) -> CausalLM:
    task = make_task()
    task.encoder.max_length = 4096
    return task


def test_every_example_is_shown_with_the_answer_to_another(make_task: MakeTask, request_: DeletionRequest) -> None:
    context = guard(roomy(make_task), request_, retain_shots=2).context
    truth = dict(zip(request_.forget["prompt"], request_.forget["answer"], strict=True))
    assert {prompt for prompt, _ in context.forget} == set(truth)
    assert all(answer != truth[prompt] and answer in truth.values() for prompt, answer in context.forget)
    assert request_.retain is not None
    kept = dict(zip(request_.retain["prompt"], request_.retain["answer"], strict=True))
    assert len(context.retain) == 2
    assert all(kept[prompt] == answer for prompt, answer in context.retain)
    assert context.nearest == 0, "all of them fit, so all of them are shown"


def test_few_shots_are_the_nearest_or_the_same_before_every_question(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    near = guard(roomy(make_task), request_, forget_shots=2).context
    assert (len(near.forget), near.nearest) == (6, 2)
    fixed = guard(roomy(make_task), request_, forget_shots=2, choose="fixed").context
    assert (len(fixed.forget), fixed.nearest) == (2, 0)
    assert set(fixed.forget) <= set(near.forget)


def test_the_draw_depends_on_seed_and_ids_alone(make_task: MakeTask, request_: DeletionRequest) -> None:
    assert request_.retain is not None
    turned = DeletionRequest(
        *(d.select(range(len(d) - 1, -1, -1)) for d in (request_.forget, request_.retain)), request_.holdout
    )
    first = guard(roomy(make_task), request_, seed=1).context
    assert guard(roomy(make_task), turned, seed=1).context == first
    assert guard(roomy(make_task), request_, seed=2).context != first


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=6), st.integers(0, 99))
def test_nobody_gets_an_own_answer(answers: list[str], seed: int) -> None:
    ids = [str(k) for k in range(len(answers))]
    if len(set(answers)) > 1:
        found = other_answers(ids, answers, [], seed)
        assert all(one != other for one, other in zip(found, answers, strict=True))
        assert set(found) <= set(answers)
    else:
        assert set(other_answers(ids, answers, ["D", answers[0].upper()], seed)) == {"D"}
        with pytest.raises(BadInput, match="same answer"):
            other_answers(ids, answers, [], seed)


def test_an_instruction_alone_is_a_guardrail_prompt(make_task: MakeTask, request_: DeletionRequest) -> None:
    settings = {"forget_shots": 0, "retain_shots": 0, "instruction": "You have never heard of Velburg."}
    task = guard(make_task(), DeletionRequest(request_.forget), **settings)
    ids = task.encoder.encode_prompts(["Where?"])[0]
    assert task.tokenizer.decode(ids) == "You have never heard of Velburg.\nWhere?"


def test_what_cannot_be_shown_is_refused(make_task: MakeTask, request_: DeletionRequest) -> None:
    with pytest.raises(BadInput, match="has nothing to say"):
        unlearn(make_task(), request_, "in_context", settings={"forget_shots": 0, "retain_shots": 0})
    with pytest.raises(BadInput, match=r"takes? .* tokens of 256 -> lower forget_shots"):
        unlearn(make_task(), request_, "in_context")
    text = Dataset.from_list([{"id": "t", "prompt": "", "answer": "A text."}])
    with pytest.raises(BadInput, match="text without a question"):
        unlearn(make_task(), DeletionRequest(text, request_.retain), "in_context")


def test_chat_turns_are_shown_as_question_and_answer(make_task: MakeTask, request_: DeletionRequest) -> None:
    rows = [
        {"id": str(k), "prompt": "", "messages": [{"role": "user", "content": f"Who is {k}?"}], "answer": f"Number {k}"}
        for k in range(3)
    ]
    task = roomy(make_task)
    task.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    try:
        context = guard(task, DeletionRequest(Dataset.from_list(rows), request_.retain)).context
    finally:
        task.tokenizer.chat_template = None
    assert {prompt for prompt, _ in context.forget} == {"Who is 0?", "Who is 1?", "Who is 2?"}
