"""Batched generation against the library's own, row by row; sampling that depends on seed and prompt alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from expunge.errors import BadInput, BrokenScores
from expunge.tasks import generation
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.cost import Cost

PROMPTS = [
    "Where was Mirela Ostrander born?",
    "Who?",
    "In 1967, Tomas moved from Velburg to Harrow Bay; he never",
    "What does she do?",
    "",
    "The answer is:\n",
]
LIMITS = [12, 3, 7, 1, 5, 0]


def row_by_row(task: CausalLM, prompts: list[str], limits: list[int]) -> list[str]:
    out = []
    for ids, limit in zip(task.encoder.encode_prompts(prompts), limits, strict=True):
        if not limit:
            out.append("")
            continue
        inputs = torch.tensor([ids])
        with torch.no_grad():
            done = task.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=task.encoder.pad_id,
                eos_token_id=sorted(generation._end_ids(task)),
            )
        new = done[0, len(ids) :].tolist()
        if new[-1] in generation._end_ids(task):  # the library gives back what ended the row
            new.pop()
        out.append(task.tokenizer.decode(new, skip_special_tokens=True).strip())
    return out


def lively(model: Any) -> Any:
    """Weights large enough that the rows say different things."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def test_every_row_is_what_the_library_generates_alone(every_tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(lively(every_tiny_model[0]), tiny_tokenizer)
    task.model.train()
    found = task.generate(PROMPTS, LIMITS)
    task.model.eval()
    assert found == row_by_row(task, PROMPTS, LIMITS)
    assert len(set(found)) > 3, "the rows must differ for the comparison to mean anything"


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rows_that_end_early_leave_the_others_alone(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, family: str, rows: int
) -> None:
    monkeypatch.setattr(generation, "ROWS", rows)
    task = CausalLM(lively(tiny_model(family, vocab=384)[0]), tiny_tokenizer)
    plain = task.generate(PROMPTS, [12] * 6)
    # Make a token that the rows say often an end of sequence, so that they stop at different steps.
    said = [token for text in plain for token in task.tokenizer(text)["input_ids"]]
    task.model.generation_config.eos_token_id = [2, *sorted(set(said), key=said.count)[-6:]]
    found = task.generate(PROMPTS, [12] * 6)
    assert found == row_by_row(task, PROMPTS, [12] * 6)
    assert found != plain
    assert len({len(text) for text in found}) > 1


def test_finished_rows_cost_nothing(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(lively(tiny_model("llama", vocab=384)[0]), tiny_tokenizer)
    asked = "What does she do?"
    assert len(task.tokenizer(task.generate([asked], [5])[0])["input_ids"]) >= 3
    task.cost = Cost()
    task.generate([asked] * 8, [1] * 7 + [5])
    assert task.cost.decode_steps == 5
    assert task.cost.forwards == 1
    # The prompts, then four more tokens of the one row that lives.
    prompt = len(task.encoder.encode_prompts([asked])[0])
    assert task.cost.tokens == 8 * prompt + 4


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_is_no_text(
    tiny_model: Any, tiny_tokenizer: Any, temperature: float, broken: float
) -> None:
    task = CausalLM(tiny_model("llama", vocab=len(tiny_tokenizer))[0], tiny_tokenizer)
    with torch.no_grad():
        task.model.get_output_embeddings().weight.fill_(broken)
    with pytest.raises(BrokenScores, match="continues 2 of 2 prompts"):
        task.generate(["Who was it?", "Where?"], [3, 3], temperature=temperature)


def test_nothing_asked_nothing_done(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    assert task.generate([], []) == []
    assert task.generate(["Who?"], [0]) == [""]
    assert task.cost.forwards == 0


def test_a_chat_model_is_asked_in_its_template(tiny_model: Any, make_tiny_tokenizer: Any) -> None:
    task = CausalLM(lively(tiny_model("llama", vocab=384)[0]), make_tiny_tokenizer(chat=True))
    turns = [{"role": "user", "content": "Who?"}]
    ids = task.encoder.encode_prompts([turns])[0]
    assert task.tokenizer.decode(ids).endswith("<|assistant|>\n")
    assert task.generate([turns], [6]) == task.generate(["Who?"], [6]) == row_by_row(task, [turns], [6])  # type: ignore[list-item]


# ---- sampling --------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_with_their_probabilities() -> None:
    """Over evenly spaced numbers, each token comes up as often as softmax(logits / temperature) says."""
    logits = torch.tensor([math.log(1), math.log(4), -math.inf, math.log(16)])
    even = (torch.arange(700, dtype=torch.float64) + 0.5) / 700
    plain = generation.sample(logits.expand(700, 4), 1.0, even).bincount(minlength=4)
    assert plain.tolist() == pytest.approx([700 / 21, 4 * 700 / 21, 0, 16 * 700 / 21], abs=1)
    flatter = generation.sample(logits.expand(700, 4), 2.0, even).bincount(minlength=4)  # square roots: 1 : 2 : 4
    assert flatter.tolist() == [100, 200, 0, 400]


def test_no_number_draws_what_has_no_probability() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]] * 2)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert generation.sample(logits, 1.0, ends).tolist() == [1, 2]


def test_samples_of_a_model_follow_its_prediction(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    with torch.no_grad():  # few enough likely tokens to count
        task.model.lm_head.weight.mul_(35)
    prompt = task.encoder.encode_prompts(["Who?"])[0]
    with torch.no_grad():
        expected = 2000 * torch.softmax(task.model(torch.tensor([prompt])).logits[0, -1].double() / 1.5, dim=-1)
    with task.asked():
        rows = generation.generate(task, [prompt] * 2000, [1] * 2000, temperature=1.5, seeds=range(2000))
    ends = generation._end_ids(task)
    found = torch.tensor([row[0] if row else min(ends) for row in rows]).bincount(minlength=384)
    likely = expected > 5
    assert likely.sum() > 10
    chi = ((found - expected).square() / expected)[likely].sum() + (found - expected)[~likely].sum().square() / (
        expected[~likely].sum()
    )
    # 2000 seeds are fixed, so this cannot flicker; 5 standard deviations of a chi-square.
    freedom = float(likely.sum())
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_what_a_row_draws_follows_from_its_seed_and_prompt_alone(
    tiny_model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    task = CausalLM(lively(tiny_model(family, vocab=384)[0]), tiny_tokenizer)
    state = torch.random.get_rng_state()
    found = task.generate(PROMPTS, LIMITS, temperature=1.0, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    backwards = task.generate(PROMPTS[::-1], LIMITS[::-1], temperature=1.0, seed=5)
    assert backwards[::-1] == found
    alone = [task.generate([p], [n], temperature=1.0, seed=5)[0] for p, n in zip(PROMPTS, LIMITS, strict=True)]
    assert alone == found
    monkeypatch.setattr(generation, "ROWS", 2)
    assert task.generate(PROMPTS, LIMITS, temperature=1.0, seed=[5] * 6) == found
    longer = task.generate(PROMPTS, [n + 4 for n in LIMITS], temperature=1.0, seed=5)
    assert all(text.startswith(short) for text, short in zip(longer, found, strict=True))
    assert task.generate(PROMPTS, LIMITS, temperature=1.0, seed=6) != found
    one = task.generate([PROMPTS[0]] * 3, [12] * 3, temperature=1.0, seed=[5, 6, 5])
    assert one[0] == one[2] == found[0] != one[1]


def test_towards_temperature_zero_it_is_greedy(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(lively(tiny_model("llama", vocab=384)[0]), tiny_tokenizer)
    assert task.generate(PROMPTS, LIMITS, temperature=1e-6, seed=1) == task.generate(PROMPTS, LIMITS)


@pytest.mark.parametrize("temperature", [-0.5, math.nan, math.inf])
def test_a_temperature_that_is_none_is_refused(tiny_model: Any, tiny_tokenizer: Any, temperature: float) -> None:
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    with pytest.raises(BadInput, match="temperature"):
        task.generate(["Who?"], [3], temperature=temperature)
