from __future__ import annotations

from collections.abc import Callable

import pytest
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer

from expunge.benchmarks.muse_scores import cut, knowledge, membership, question_prompt, verbatim
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings


@pytest.fixture(scope="module")
def model(tiny_model: Callable, make_tiny_tokenizer: Callable) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab=384)[0], make_tiny_tokenizer())


def test_prompts_and_cuts_are_those_of_the_paper() -> None:
    assert (
        question_prompt("Who?", [("Where?", "There")]) == "Question: Where?\nAnswer: There\n\nQuestion: Who?\nAnswer: "
    )
    assert cut("Anna\nQuestion: x") == "Anna"
    assert cut("Anna\n\nBert") == "Anna"
    assert cut("Anna Question: x") == "Anna "


def test_scores_are_plain_rouge_f1(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """rouge-score without a stemmer: "running" is not "runs", so 2 of 3 words agree on both sides."""
    asked: list[tuple[str, int]] = []

    def say(prompts: list[str], limits: list[int]) -> list[str]:
        asked.extend(zip(prompts, limits, strict=True))
        return ["Anna runs fast\n\nQuestion: more", ""]

    monkeypatch.setattr(model, "generate", say)
    said = knowledge(model, [("Who?", "Anna running fast"), ("What?", "Rain")])
    f1 = RougeScorer(["rougeL"], use_stemmer=False).score("Anna running fast", "Anna runs fast")["rougeL"].fmeasure
    assert f1 == pytest.approx(2 / 3)
    assert said.score == pytest.approx(100 * f1 / 2)
    assert (said.empty, said.n) == (0.5, 2)
    assert asked[0] == ("Question: Who?\nAnswer: ", 32)
    asked.clear()
    verbatim(model, [("Anna", "runs fast today"), ("It", "rained")])
    assert asked == [("Anna", 128), ("It", 128)]


def test_the_true_text_is_cut_like_the_generated_one(model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    gold = "Mirela Ostrander was born in Velburg and repairs clocks."
    head = model.tokenizer.decode(model.tokenizer(gold)["input_ids"][:6])
    monkeypatch.setattr(model, "generate", lambda prompts, limits: [head])
    assert verbatim(model, [("x", gold)], tokens=6).score == pytest.approx(100)
    assert verbatim(model, [("x", gold)], tokens=128).score < 100


def test_membership_shows_what_was_trained_on(model: CausalLM) -> None:
    everything = [f"Person {k} was born in Velburg, in the year {1900 + 37 * k % 90}." for k in range(10, 34)]
    texts, other = everything[::2], everything[1::2]
    learnt = model.copy()
    settings = TrainSettings(epochs=60, batch_size=12, learning_rate=3e-3, warmup=0.0, schedule="constant")
    encoded = learnt.encode(Dataset.from_list([{"id": t, "prompt": "", "answer": t} for t in texts]))
    train(learnt, Objective((Term("nll", ("forget",), nll, "token_mean"),)), {"forget": encoded}, settings)
    after, before = membership(learnt, texts, other), membership(model, texts, other)
    assert after.auc > 0.9
    assert 0.1 < before.auc < 0.9
    assert after.tpr >= before.tpr
