from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.audits.language.multiple_choice import (
    Asked,
    MultipleChoice,
    answers,
    letter_tokens,
    prompt_text,
    read_set,
)
from expunge.audits.multiple_choice_items import Item
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one, select_audits
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.objective import Objective, Term, nll
from expunge.training.settings import TrainSettings

SHOT = Item("What is 1 + 1?", ("1", "2"), 1)
ITEM = Item("What is 2 + 2?", ("3", "4", "5"), 1)


def test_the_prompt_of_the_paper() -> None:
    assert prompt_text(Asked("i", "college_physics", ITEM, (SHOT,)), 1) == (
        "The following are multiple choice questions (with answers) about college physics.\n\n"
        "What is 1 + 1?\nA. 1\nB. 2\nAnswer: B\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:"
    )
    assert prompt_text(Asked("i", "", ITEM), 0) == "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nAnswer:"


def test_one_row_says_what_a_plain_forward_says(make_lm: Callable[..., CausalLM]) -> None:
    model = make_lm(0, bos=True)
    asked = [Asked("i", "", ITEM), Asked("j", "x", ITEM, (SHOT,))]
    found = answers(model, asked)
    for one in asked:
        text, letters = letter_tokens(model, prompt_text(one, len(one.shots)), 3)
        assert text[0] == model.tokenizer.bos_token_id
        with torch.no_grad():
            logits = model.model(input_ids=torch.tensor([text])).logits[0, -1]
        assert found[one.id] == pytest.approx(logits.log_softmax(-1)[letters].numpy(), abs=1e-5)
    assert model.cost.forwards == 1


def folder(tmp_path: Path) -> Path:
    for part, rows in (
        ("dev", "What is 1 + 1?,1,2,3,4,1\n"),
        ("test", "What is 2 + 2?,3,4,5,6,1\nWhat is 3 + 1?,3,4,5,6,B\n"),
    ):
        (tmp_path / part).mkdir()
        for subject in ("sums", "more"):
            (tmp_path / part / f"{subject}_{part}.csv").write_text(rows.replace("What", f"In {subject} what"))
    return tmp_path


def test_a_folder_in_the_published_layout(make_lm: Callable[..., CausalLM], tmp_path: Path) -> None:
    data = folder(tmp_path)
    assert [(a.subject, len(a.shots)) for a in read_set(data)] == [("more", 1)] * 2 + [("sums", 1)] * 2
    request = DeletionRequest(Dataset.from_list([{"id": "a", "prompt": "x", "answer": "y"}]))
    audit = MultipleChoice(MultipleChoice.Config(data=data, subjects=("sums",)))
    finding = run_one(audit, Observations({"unlearned": make_lm(0)}, request))
    assert finding.status == "measured", finding.note
    assert finding.attempted == {"items": {"data": 2}, "chance": {"data": 0.25}, "shots": 5, "left out": 0}
    assert finding.tables[0].rows[0][:2] == ["sums", 2]


def test_a_model_that_learnt_the_letters_picks_them(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    model = make_lm(0)
    seen = Observations({"unlearned": model}, request_)
    sets = MultipleChoice()._sets(seen)
    letters = "ABCDEF"
    rows = [
        {"id": a.id, "prompt": prompt_text(a, 0), "answer": letters[a.item.correct or 0]}
        for role in ("forget", "retain")
        for a in sets[role]
    ]
    settings = TrainSettings(epochs=60, batch_size=8, learning_rate=3e-3, warmup=0.0, schedule="constant")
    objective = Objective((Term("nll", ("retain",), nll, "token_mean"),), anchor="retain")
    train(model, objective, {"retain": model.encode(Dataset.from_list(rows))}, settings)
    finding = run_one(MultipleChoice(), Observations({"unlearned": model}, request_))
    assert finding.estimates["unlearned"]["forget_accuracy"].value >= 0.9
    assert finding.estimates["unlearned"]["retain_accuracy"].value >= 0.9


def test_fewer_shots_where_the_context_is_short_and_none_is_left_out_unseen(make_lm: Callable[..., CausalLM]) -> None:
    model = make_lm(0)
    asked = [Asked("i", "sums", ITEM, (SHOT, SHOT))]
    full = letter_tokens(model, prompt_text(asked[0], 2), 3)
    bare = letter_tokens(model, prompt_text(asked[0], 0), 3)
    assert full is not None
    assert bare is not None
    model.encoder.max_length = len(full[0])
    short = answers(model, asked)["i"]
    one_shot = letter_tokens(model, prompt_text(asked[0], 1), 3)
    assert short == pytest.approx(model.next_token_log_probs([one_shot[0]], [one_shot[1]])[0])
    model.encoder.max_length = len(bare[0])
    assert answers(model, asked) == {}


def test_equal_letters_are_no_answer(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    model = make_lm(0)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()
    finding = run_one(MultipleChoice(), Observations({"unlearned": model}, request_))
    assert finding.estimates["unlearned"]["forget_accuracy"].value == 0.0
    assert finding.estimates["unlearned"]["forget_probability"].value == pytest.approx(0.25)


def test_a_broken_model_crashes(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    model = make_lm(0)
    with torch.no_grad():
        model.model.get_output_embeddings().weight[0, 0] = np.nan
    assert run_one(MultipleChoice(), Observations({"unlearned": model}, request_)).status == "crashed"


def test_what_is_wrong_is_said_before_work(scripted: Callable, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="neither a CSV file"):
        select_audits(["multiple_choice"], {"multiple_choice": {"data": tmp_path / "absent"}})
    audit = MultipleChoice(MultipleChoice.Config(data=folder(tmp_path), subjects=("sum",)))
    request = DeletionRequest(Dataset.from_list([{"id": "a", "prompt": "x", "answer": "y"}]))
    with pytest.raises(BadInput, match="sums"):
        audit.prepare(Observations({"unlearned": scripted()}, request))
    assert run_one(MultipleChoice(), Observations({"unlearned": scripted()}, request)).status == "no data"
