"""AltPO: wrong answers of the model's own, and the preference for them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.altpo import AltPO, AltPOConfig, says_the_truth, wrong_answers
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

SHORT = {"max_new_tokens": 8, "samples": 3}
LARGE = {"learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant", **SHORT}


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("In Velburg.", "in velburg", True),
        ("She was born in Velburg!", "In Velburg.", True),
        ("Velburg", "She was born in Velburg.", True),
        ("", "In Velburg.", True),
        (" ... ", "In Velburg.", True),
        ("In Velburgen.", "In Velburg.", False),
        ("In Salt.", "In Velburg.", False),
        ("京都です", "東京です", False),
        ("Yes", "!", False),
    ],
)
def test_what_states_the_truth_is_told_from_what_does_not(answer: str, truth: str, same: bool) -> None:
    assert says_the_truth(answer, truth) is same


class Scripted:
    """Stands in for a model that says what it is told to, and notes how it was asked."""

    def __init__(self, *turns: list[str]):
        self.turns, self.calls = list(turns), list[dict[str, Any]]()
        self.encoder: Any = type("Encoder", (), {"max_length": None})

    def generate(self, prompts: list[str], limits: list[int], **options: Any) -> list[str]:
        self.calls.append({"prompts": prompts, "limits": limits, **options})
        return self.turns.pop(0)


FORGET = Dataset.from_dict({"id": ["a1", "b2"], "prompt": ["Where?", "Who?"], "answer": ["In Velburg.", "Tomas."]})


def test_truths_and_repeats_are_drawn_again_and_hotter() -> None:
    told: Any = Scripted(["In Velburg.", "In Salt.", "Ann.", "ann"], ["", "Bo."], ["In Harrow."])
    found = wrong_answers(told, FORGET, AltPOConfig(samples=2, temperature=0.8, max_new_tokens=9))
    assert found == [["In Salt.", "In Harrow."], ["Ann.", "Bo."]]
    assert [call["prompts"] for call in told.calls] == [["Where?"] * 2 + ["Who?"] * 2, ["Where?", "Who?"], ["Where?"]]
    assert [call["temperature"] for call in told.calls] == pytest.approx([0.8, 1.0, 1.25])
    assert told.calls[0]["limits"] == [9] * 4
    seeds = [seed for call in told.calls for seed in call["seed"]]
    assert len(set(seeds)) == len(seeds) == 7


def test_a_question_does_with_what_the_rounds_bring() -> None:
    told: Any = Scripted(["In Salt.", "In Velburg.", "Ann.", "Bo."], ["In Velburg."])
    assert wrong_answers(told, FORGET, AltPOConfig(samples=2, rounds=2)) == [["In Salt."], ["Ann.", "Bo."]]


def test_a_model_that_only_says_the_truth_is_refused() -> None:
    told: Any = Scripted(["In Velburg.", "Ann."], ["In Velburg."])
    with pytest.raises(BadInput, match=r"no wrong answer to 1 question\(s\): example 1.*answers_column"):
        wrong_answers(told, FORGET, AltPOConfig(samples=1, rounds=2))


def test_samples_follow_from_seed_and_question_alone(task: CausalLM, request_: DeletionRequest) -> None:
    config, forget = AltPOConfig(**SHORT), request_.forget
    found = dict(zip(forget["id"], wrong_answers(task, forget, config), strict=True))
    assert {len(set(texts)) for texts in found.values()} == {3}
    turned = forget.select([4, 1, 5])
    assert wrong_answers(task, turned, config) == [found[identity] for identity in turned["id"]]
    other = wrong_answers(task, forget, AltPOConfig(**SHORT, sample_seed=1))
    assert other != list(found.values())


def test_answers_fit_behind_their_question(task: CausalLM, request_: DeletionRequest) -> None:
    longest = max(len(p) for p in task.encoder.encode_prompts(request_.forget["prompt"]))
    task.encoder.max_length = longest + 4
    found = wrong_answers(task, request_.forget, AltPOConfig(samples=2, max_new_tokens=50))
    assert all(task.count_tokens(text) <= 50 for texts in found for text in texts)
    assert min(task.count_tokens(text) for texts in found for text in texts) <= 3


def test_the_pool_is_what_the_original_model_says(task: CausalLM, request_: DeletionRequest) -> None:
    method = settle(AltPO, SHORT)[0]
    assert isinstance(method, AltPO)
    pool = method.examples("alternative", task, request_)
    assert pool["answer"] == [text for texts in wrong_answers(task, request_.forget, method.config) for text in texts]
    assert pool["id"][:4] == [*(f"{request_.forget[0]['id']}#{k}" for k in range(3)), f"{request_.forget[1]['id']}#0"]
    assert method.examples("forget", task, request_) is request_.forget


def test_it_starts_at_the_known_value_and_prefers_the_wrong_answers(task: CausalLM, request_: DeletionRequest) -> None:
    done = unlearn(task, request_, "altpo", settings={**LARGE, "epochs": 6, "retain": "none"})
    assert done.training is not None
    losses = [record["loss/altpo"] for record in done.training.history]
    assert losses[0] == pytest.approx(20 * math.log(2), rel=1e-4)
    assert losses[-1] < losses[0]


def test_a_run_goes_on_with_the_answers_it_began_with(
    task: CausalLM, request_: DeletionRequest, tmp_path: Path
) -> None:
    settings = {**LARGE, "epochs": 2, "batch_size": 3, "checkpoint_every": 1}
    whole = unlearn(task, request_, "altpo", settings=settings)

    class Killed(Exception):
        pass

    def kill(step: int, *_: Any) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        unlearn(task, request_, "altpo", settings=settings, folder=tmp_path, progress=kill)
    resumed = unlearn(task, request_, "altpo", settings=settings, folder=tmp_path)
    assert resumed.training is not None
    assert resumed.training.resumed_from == 2
    expected = whole.model.model.state_dict()
    assert all(torch.equal(expected[name], value) for name, value in resumed.model.model.state_dict().items())


def test_answers_of_a_column_are_used_and_nothing_is_sampled(
    task: CausalLM, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "generate", lambda *_, **__: pytest.fail("something was sampled"))
    forget = request_.forget.add_column("wrong", [[f"In Salt {i}.", "Nowhere."] for i in range(6)])
    asked = DeletionRequest(forget, request_.retain)
    done = unlearn(task, asked, "altpo", settings={"max_steps": 1, "answers_column": "wrong"})
    assert done.training is not None
    method = settle(AltPO, {"answers_column": "wrong"})[0]
    assert method.examples("alternative", task, asked)["answer"][:3] == ["In Salt 0.", "Nowhere.", "In Salt 1."]  # type: ignore[attr-defined]


def test_what_cannot_work_is_refused_before_any_compute(
    task: CausalLM, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "copy", lambda _: pytest.fail("something was computed"))
    with pytest.raises(BadInput, match="no column 'wrong'"):
        unlearn(task, request_, "altpo", settings={"answers_column": "wrong"})
    raw = request_.forget.map(lambda _: {"prompt": ""})
    with pytest.raises(BadInput, match=r"6 example.*without a question"):
        unlearn(task, DeletionRequest(raw, request_.retain), "altpo")


def test_defaults_are_within_the_published_grid() -> None:
    config = settle(AltPO, {})[0].config
    assert (config.beta, config.forget_weight, config.retain_weight, config.retain) == (0.1, 1.0, 1.0, "nll")
    assert (config.samples, config.temperature, config.max_new_tokens) == (5, 1.0, 200)
