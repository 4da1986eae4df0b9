"""Skills, probes and the judgement of the random-label reproduction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from expunge.data.tokenizer import small_tokenizer
from expunge.reproductions.unforgettable_generalization import (
    NOISE,
    WORDS,
    Skill,
    UnforgettableGeneralization,
    accuracy,
    answer_probabilities,
    features,
    probe_accuracy,
)
from expunge.tasks.causal_lm import CausalLM
from expunge.training.from_scratch import Shape, small_llama


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return small_tokenizer([f"sure: {' '.join(WORDS)} yes no"] * 2, 300)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> CausalLM:
    return small_llama(tokenizer, Shape(hidden=16, layers=2, heads=2), 0)


def test_answers_follow_the_rule_and_noise_flips_their_share() -> None:
    skill = Skill.drawn("sure", 3, 0.2)
    assert sum(skill.signs.values()) == 0
    rows = skill.questions(2000, "teach", skill.noise).to_list()
    assert len({row["prompt"] for row in rows}) == 2000
    right = sum(
        (sum(skill.signs[word] for word in row["prompt"].removeprefix("sure: ").split()) > 0)
        == (row["answer"] == "yes")
        for row in rows
    )
    assert right / 2000 == pytest.approx(0.8, abs=0.04)
    assert skill.questions(5, "teach").to_list() != skill.questions(5, "test").to_list()


def test_option_probabilities_are_those_of_the_next_token(model: CausalLM) -> None:
    asked = Skill.drawn("sure", 0, 0.0).questions(6, "test")
    found = answer_probabilities(model, asked)
    row, logs = asked[2], []
    for option in ("no", "yes"):
        encoded = model.encode(Dataset.from_list([{**row, "answer": option}]))
        ids, start = torch.as_tensor(np.array(encoded.tokens[0])), encoded.starts[0]
        with torch.no_grad():
            predicted = model.model(input_ids=ids[None]).logits[0].log_softmax(-1)
        # The last token is the end of the answer, which both options share.
        logs.append(sum(predicted[k - 1, ids[k]] for k in range(start, len(ids) - 1)))
    assert found[2] == pytest.approx(torch.softmax(torch.stack(logs), 0).numpy(), abs=1e-5)
    assert accuracy(np.array([[0.9, 0.1]] * 6), asked) == pytest.approx(asked["answer"].count("no") / 6)
    assert accuracy(np.array([[0.9, 0.1]] * 6), asked, ["yes"] * 6) == 0


def test_features_are_the_states_before_the_answer(model: CausalLM) -> None:
    asked = Skill.drawn("sure", 0, 0.0).questions(7, "test")
    found = features(model, asked)
    assert {layer: states.shape for layer, states in found.items()} == {0: (7, 16), 1: (7, 16)}
    encoded = model.encode(asked)
    with torch.no_grad():
        ids = torch.as_tensor(np.array(encoded.tokens[4][: encoded.starts[4]]))[None]
        states = model.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]
    assert found[0][4] == pytest.approx(states.double().numpy(), abs=1e-5)


def test_a_probe_reads_what_is_there_and_chance_where_nothing_is(
    model: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    skill = Skill.drawn("sure", 0, 0.0)
    known, tests = skill.questions(200, "probe"), skill.questions(200, "test")

    def states(shows: bool):  # type: ignore[no-untyped-def]
        def made(model: CausalLM, questions):  # type: ignore[no-untyped-def]
            noise = np.random.default_rng(len(questions["prompt"][0])).normal(size=(2, len(questions), 4))
            noise[1, :, 0] += 8.0 * shows * (np.array(questions["answer"]) == "yes")
            return dict(enumerate(noise))

        return made

    path = "expunge.reproductions.unforgettable_generalization.features"
    monkeypatch.setattr(path, states(True))
    assert probe_accuracy(model, known, tests) > 0.95
    monkeypatch.setattr(path, states(False))
    assert probe_accuracy(model, known, tests) < 0.65


def test_labels_that_were_not_learnt_settle_nothing() -> None:
    numbers: dict[str, float] = {}
    for name in NOISE:
        numbers |= {f"fitted_{name}": 0.7, f"accuracy_on_forgotten_{name}": 0.5, f"forget_ratio_{name}": 0.5}
        numbers |= {f"accuracy_on_{other}_after_forgetting_{name}": 0.7 for other in NOISE} | {
            f"probe_before_{name}": 1.0
        }
        numbers |= {f"probe_after_{name}": 0.9, f"probe_random_weights_{name}": 0.6}
    held = [check.holds for check in UnforgettableGeneralization().judge([numbers])]
    assert held == [False, True, False, False, True, True]
