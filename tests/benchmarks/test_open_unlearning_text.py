"""Their layout and scores, against a forward pass and a greedy loop written out here; ours without the slips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from expunge.benchmarks.open_unlearning_text import (
    Template,
    TemplateEncoder,
    default_template,
    gradient_norms,
    parity_generations,
    parity_scores,
    parity_tokens,
    running_tokens,
)
from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM

CHAT = Template(apply_chat_template=True, system_prompt="Be brief.")
TEXT = Template()
# Two of one question: our own scoring would share their beginning, which must not meet a mask of theirs.
PAIRS = [
    ("Where was Mirela born?", "Mirela was born in Velburg."),
    ("Where was Mirela born?", "In Harrow Bay."),
    ("What does Tomas do?", "He repairs clocks and soup for 12.50 €."),
]
LAYOUTS = [(CHAT, True), (CHAT, False), (TEXT, True), (TEXT, False)]

TinyLM = Callable[..., CausalLM]


def by_hand(task: CausalLM, template: Template) -> list[tuple[list[int], int]]:
    """Token ids and how many carry no label, by string operations alone."""
    out = []
    for question, answer in PAIRS:
        if template.apply_chat_template:
            turns = ["system", "Be brief.", "user", question, "assistant", answer]
            said = "".join(f"<|{a}|>\n{b}<|eos|>\n" for a, b in zip(turns[::2], turns[1::2], strict=True))
            asked = said[: said.index("<|assistant|>")] + "<|assistant|>\n"
        else:
            asked = f"Question: {question}\nAnswer: "
            said = asked + answer
        ids = task.tokenizer(said, add_special_tokens=False)["input_ids"]
        prompt = task.tokenizer(asked, add_special_tokens=False)["input_ids"]
        out.append(
            (ids if ids[-1] == task.tokenizer.eos_token_id else [*ids, task.tokenizer.eos_token_id], len(prompt))
        )
    return out


@pytest.mark.parametrize(("template", "pad_is_eos"), LAYOUTS)
def test_scores_are_those_of_their_batch(tiny_lm: TinyLM, template: Template, pad_is_eos: bool) -> None:
    task = tiny_lm(chat=True, pad_is_eos=pad_is_eos)
    rows = by_hand(task, template)
    assert [parity_tokens(task.tokenizer, template, *pair) for pair in PAIRS] == rows
    pad, width = task.tokenizer.pad_token_id, max(len(ids) for ids, _ in rows)
    grid = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in rows])
    with torch.no_grad():
        logits = task.model(input_ids=grid, attention_mask=grid != pad).logits.double()
    for found, (ids, start), row in zip(parity_scores(task, template, PAIRS), rows, logits, strict=True):
        assert found is not None
        expected = [float(torch.log_softmax(row[t - 1], -1)[ids[t]]) for t in range(start, len(ids))]
        assert found.log_prob == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert found.text == task.tokenizer.decode(ids[start:], skip_special_tokens=True)
    # The model is left as it was.
    assert not task.model._forward_pre_hooks


def test_hidden_tokens_matter_only_where_padding_is_the_end(tiny_lm: TinyLM) -> None:
    def values(pad_is_eos: bool) -> list[float]:
        task = tiny_lm(chat=True, pad_is_eos=pad_is_eos)
        ours = CausalLM(task.model, task.tokenizer)
        ours.encoder = TemplateEncoder(task.tokenizer, CHAT)
        theirs, mine = parity_scores(task, CHAT, PAIRS), ours.score(PAIRS)
        # What they score last are the turn's end, a newline and an end of their own: only hiding differs before it.
        return [float(a.log_prob[:-3].mean() - b.log_prob[:-1].mean()) for a, b in zip(theirs, mine, strict=True) if a]

    assert values(False) == pytest.approx([0.0] * 3, abs=1e-5)
    assert max(map(abs, values(True))) > 1e-3


def test_ours_scores_the_first_token_that_theirs_leaves_out(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    ids, start = parity_tokens(task.tokenizer, TEXT, *PAIRS[0])
    encoded = TemplateEncoder(task.tokenizer, TEXT).encode(PAIRS)
    first = encoded.starts[0]
    assert list(encoded.tokens[0]) == ids
    assert start == first + 1  # the prompt alone ends with a token of its own for the space
    assert task.tokenizer.decode(ids[first:-1]).strip() == PAIRS[0][1]
    assert not task.tokenizer.decode(ids[start:-1]).strip().startswith(PAIRS[0][1][:2])


def test_an_answer_within_the_last_prompt_token_has_no_scores(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    bare = Template(user_start_tag="", user_end_tag="", asst_start_tag="")
    ids = task.tokenizer("Ostrander")["input_ids"]
    assert len(ids) < len(task.tokenizer("Ostrande")["input_ids"])  # what is asked alone takes more tokens
    asked, answer = "Ostrande", "r"
    assert parity_tokens(task.tokenizer, bare, asked, answer)[1] >= len(ids) + 1
    scores = parity_scores(task, bare, [(asked, answer), *PAIRS])
    assert scores[0] is None
    assert all(s is not None for s in scores[1:])
    assert parity_scores(task, bare, [(asked, answer)]) == [None]


@pytest.mark.parametrize(("template", "pad_is_eos"), [(CHAT, True), (TEXT, False)])
def test_generation_is_greedy_from_a_left_padded_prompt(tiny_lm: TinyLM, template: Template, pad_is_eos: bool) -> None:
    task = tiny_lm(chat=True, pad_is_eos=pad_is_eos)
    pad, eos = task.tokenizer.pad_token_id, task.tokenizer.eos_token_id
    expected = []
    for (ids, start), (_, answer) in zip(by_hand(task, template), PAIRS, strict=True):
        prompt = [*ids[:start]] if template is CHAT else task.tokenizer(task_text(ids, task, answer))["input_ids"]
        row, new = list(prompt), []
        for _ in range(6):
            seen = torch.tensor([[int(t != pad) for t in prompt] + [1] * len(new)])
            places = (seen.cumsum(-1) - 1).clamp(min=0)
            with torch.no_grad():
                logits = task.model(input_ids=torch.tensor([row]), attention_mask=seen, position_ids=places).logits
            new.append(int(logits[0, -1].argmax()))
            row.append(new[-1])
            if new[-1] == eos:
                break
        expected.append(task.tokenizer.decode(new, skip_special_tokens=True).strip())
    found = parity_generations(task, template, PAIRS, new_tokens=6)
    assert [one.generation for one in found] == expected
    truths = [one.truth for one in found]
    assert all(answer in truth for truth, (_, answer) in zip(truths, PAIRS, strict=True))


def test_solved_questions_stand_before_the_one_asked(tiny_lm: TinyLM) -> None:
    shots = [("Who sang?", "Anna."), ("Who left?", "Tomas.")]
    assert TEXT.text("Why?", shots) == (
        "Question: Who sang?\nAnswer: Anna.\n\nQuestion: Who left?\nAnswer: Tomas.\n\nQuestion: Why?\nAnswer: "
    )
    roles = [turn["role"] for turn in CHAT.turns("Why?", shots)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    task = tiny_lm(chat=True)
    ids, start = parity_tokens(task.tokenizer, CHAT, "Why?", "So.", shots)
    assert task.tokenizer.decode(ids[:start]).endswith("<|user|>\nWhy?<|eos|>\n<|assistant|>\n")
    assert task.tokenizer.decode(ids[start:]).startswith("So.")


def test_running_text_has_a_beginning_and_no_end(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    ids, start = running_tokens(task.tokenizer, "sold clocks.", "Mirela walked and")
    assert task.tokenizer.decode(ids) == "Mirela walked and sold clocks."
    assert start == len(task.tokenizer("Mirela walked and")["input_ids"])
    alone, first = running_tokens(task.tokenizer, "sold clocks.")
    assert (alone, first) == (task.tokenizer("sold clocks.")["input_ids"], 1)
    assert len(running_tokens(task.tokenizer, "sold clocks. " * 900, "Mirela")[0]) == 2048 + len(
        task.tokenizer("Mirela")["input_ids"]
    )


def test_answers_end_before_a_stop(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    (whole,) = parity_generations(task, TEXT, PAIRS[:1], new_tokens=12)
    stop = whole.generation[3:5]
    (cut,) = parity_generations(task, TEXT, PAIRS[:1], new_tokens=12, stops=[stop])
    assert cut.generation == whole.generation.split(stop)[0].strip()


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_gradient_norms_by_hand(tiny_lm: TinyLM, pad_is_eos: bool) -> None:
    task = tiny_lm(chat=True, pad_is_eos=pad_is_eos)
    rows = by_hand(task, CHAT)
    found = gradient_norms(task, [*rows, (rows[0][0], len(rows[0][0]) - 1)])
    assert np.isnan(found[-1])
    for (ids, start), norm in zip(rows, found, strict=False):
        grid = torch.tensor([ids])
        logits = task.model(input_ids=grid, attention_mask=grid != task.tokenizer.pad_token_id).logits[0]
        nll = [-logits[t - 1].log_softmax(-1)[ids[t]] for t in range(start, len(ids) - 1)]
        task.model.zero_grad()
        torch.stack(nll).mean().backward()
        norms = [float(p.grad.norm()) for p in task.model.parameters() if p.grad is not None]
        assert norm == pytest.approx(np.mean(norms), rel=1e-3)
    task.model.zero_grad(set_to_none=True)


def task_text(ids: list[int], task: CausalLM, answer: str) -> str:
    text = str(task.tokenizer.decode(ids, skip_special_tokens=True))
    return text[: text.rindex(answer)]


def test_template_of_a_config() -> None:
    given = {"apply_chat_template": True, "system_prompt": "Hi", "user_start_tag": "U", "date_string": "10 Apr 2025"}
    template = Template.of(given, "x.yaml")
    assert (template.user_start_tag, template.options()) == ("U", {"date_string": "10 Apr 2025"})
    assert template.turns("q") == [{"role": "system", "content": "Hi"}, {"role": "user", "content": "q"}]
    bare = Template.of({"user_start_tag": "<", "user_end_tag": ">", "asst_start_tag": "", "asst_end_tag": ""}, "x")
    assert bare.text("q") == "<q>"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"apply_chat_templat": True}, "apply_chat_template"),
        ({"apply_chat_template": "yes"}, "true or false"),
        ({"user_start_tag": 3}, "give a text"),
        (["x"], "no mapping"),
    ],
)
def test_wrong_templates(given: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Template.of(given, "x.yaml")


def test_a_chat_without_a_template_is_refused(tiny_lm: TinyLM) -> None:
    with pytest.raises(BadInput, match="no chat template"):
        TemplateEncoder(tiny_lm().tokenizer, CHAT)


def test_default_template(tiny_lm: TinyLM, tmp_path: Any) -> None:
    assert default_template(tiny_lm(chat=True)).apply_chat_template
    assert default_template(tiny_lm()) == TEXT
    task = tiny_lm()
    task.encoder.template = "Q {prompt} A {answer}"
    task.save(tmp_path / "model")
    stored = default_template(CausalLM.load(tmp_path / "model"))
    assert stored.text("why?") == "Q why? A "


def test_ours_asks_without_the_space_that_belongs_to_the_answer(tiny_lm: TinyLM) -> None:
    task = tiny_lm()
    (row,) = TemplateEncoder(task.tokenizer, TEXT).encode_prompts(["Why?"])
    assert task.tokenizer.decode(row) == "Question: Why?\nAnswer:"
    chat = tiny_lm(chat=True)
    (row,) = TemplateEncoder(chat.tokenizer, CHAT).encode_prompts(["Why?"])
    assert task.tokenizer.decode(row).endswith("<|user|>\nWhy?<|eos|>\n<|assistant|>\n")
    assert np.array(row).ndim == 1
