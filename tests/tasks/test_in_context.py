"""A context before everything: text for text what a user would have written there, in every way of asking."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.running_text import score_text
from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.in_context import Context, InContextLM, nearest
from expunge.tasks.loading import load_task

SHOTS = (("Where was Ada born?", "Rome."), ("Who is Ada?", "A cook."), ("Where was Bo born?", "Oslo."))
CONTEXT = Context("Say nothing.", SHOTS[:2], SHOTS[2:])
BEFORE = "Say nothing.\nWhere was Ada born? Rome.\nWho is Ada? A cook.\nWhere was Bo born? Oslo."


@pytest.fixture
def plain(tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)


def test_it_scores_and_generates_as_if_the_context_had_been_written_before(plain: CausalLM) -> None:
    task = InContextLM(plain.copy(), CONTEXT)
    pairs = [("What?", "Nothing."), ("Who?", "She repairs clocks.")]
    written = [(f"{BEFORE}\n{prompt}", answer) for prompt, answer in pairs]
    for one, other in zip(task.score(pairs), plain.score(written), strict=True):
        np.testing.assert_array_equal(one.log_prob, other.log_prob)
    assert task.generate(["What?", "Who?"], [5, 5]) == plain.generate([p for p, _ in written], [5, 5])
    assert not np.allclose(task.score(pairs)[0].log_prob, plain.score(pairs)[0].log_prob)
    assert task.base.score(pairs)[0].log_prob.tolist() == plain.score(pairs)[0].log_prob.tolist()


def test_text_without_a_question_stands_behind_it_too(plain: CausalLM) -> None:
    task = InContextLM(plain, CONTEXT)
    scores = task.score([("", "In 1967, Tomas moved.")])[0]
    written = plain.score([(f"{BEFORE}\n", "In 1967, Tomas moved.")])[0]
    np.testing.assert_allclose(scores.log_prob, written.log_prob)
    # Running text: every window reads the context first, and every token is scored once.
    text = "In 1967, Tomas moved from Velburg to Harrow Bay; he never returned. " * 6
    one, other = score_text(task, text, 250, 100), score_text(plain, text, 250, 100)
    assert sum(map(len, one)) == sum(map(len, other))
    lead = len(task.encoder.lead)
    ids = plain.tokenizer(text, add_special_tokens=False)["input_ids"]
    joined = plain.tokenizer(BEFORE + "\n", add_special_tokens=False)["input_ids"] + [1] + ids
    assert len(one[0]) == min(256 - lead, len(ids) + 1) - 1
    import torch

    with torch.no_grad():
        logits = plain.model(input_ids=torch.tensor([joined[:256]])).logits[0]
    targets = torch.tensor(joined[lead + 1 : 256])
    expected = torch.log_softmax(logits[lead:-1].double(), -1).gather(-1, targets[:, None])[:, 0]
    np.testing.assert_allclose(one[0], expected.numpy(), atol=1e-5)
    with pytest.raises(BadInput, match="leaves no room"):
        score_text(InContextLM(plain, Context("Say nothing. " * 60)), text, 64, 32)


def test_in_a_chat_it_is_the_system_turn_or_the_beginning_of_the_first(
    tiny_model: Any, make_tiny_tokenizer: Any
) -> None:
    model, tokenizer = tiny_model("llama", vocab=384)[0], make_tiny_tokenizer(chat=True)
    task = InContextLM(CausalLM(model, tokenizer), Context("Say nothing."))
    turns = [{"role": "user", "content": "Who?"}]
    asked = tokenizer.decode(task.encoder.encode_prompts([turns])[0])
    assert asked == "<|system|>\nSay nothing.<|eos|>\n<|user|>\nWho?<|eos|>\n<|assistant|>\n"
    assert task.encoder.encode_prompts(["Who?"]) == task.encoder.encode_prompts([turns])
    own = [{"role": "system", "content": "Be kind."}, *turns]
    assert "<|system|>\nSay nothing.\nBe kind.<|eos|>" in tokenizer.decode(task.encoder.encode_prompts([own])[0])
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}",
    )
    asked = tokenizer.decode(task.encoder.encode_prompts([turns])[0])
    assert asked == "<|user|>\nSay nothing.\nWho?<|eos|>\n<|assistant|>\n"


def test_the_nearest_examples_are_shown_the_nearest_last() -> None:
    assert nearest("Who is Ada?", SHOTS, 1) == [SHOTS[1]]
    assert nearest("Where was Bo born?", SHOTS, 2) == [SHOTS[0], SHOTS[2]]
    context = Context("", SHOTS, (), nearest=1)
    assert context.before("Who is Ada?", "Q: {prompt} A: {answer}") == "Q: Who is Ada? A: A cook."
    assert Context().before("Who?", "{prompt} {answer}") == ""


@given(st.permutations(range(3)), st.text(), st.integers(0, 4))
def test_nearest_are_some_of_them_each_once(order: list[int], prompt: str, count: int) -> None:
    found = nearest(prompt, [SHOTS[k] for k in order], count)
    assert len(found) == len(set(found)) == min(count, 3)
    assert set(found) <= set(SHOTS)


def test_a_folder_gives_back_the_same_model_and_the_context_can_be_read(plain: CausalLM, tmp_path: Path) -> None:
    task = InContextLM(plain, Context("Ça va?", SHOTS[:2], SHOTS[2:], nearest=1))
    task.save(tmp_path / "out", {"method": "in_context"})
    again = load_task(tmp_path / "out")
    assert isinstance(again, InContextLM)
    assert again.context == task.context
    pairs = [("What?", "Nothing.")]
    np.testing.assert_allclose(again.score(pairs)[0].log_prob, task.score(pairs)[0].log_prob, atol=1e-6)
    settings = json.loads((tmp_path / "out/expunge.json").read_text())
    assert settings["context"]["retain"] == [["Where was Bo born?", "Oslo."]]
    settings["context"]["forget"] = [["only a question"]]
    (tmp_path / "out/expunge.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="does not say what stands before a prompt"):
        load_task(tmp_path / "out")


def test_copies_and_what_never_knew(plain: CausalLM) -> None:
    task = InContextLM(plain, CONTEXT)
    twin = task.copy()
    assert isinstance(twin, InContextLM)
    assert twin.model is not task.model
    assert twin.context == task.context
    assert type(task.fresh(1)) is CausalLM
