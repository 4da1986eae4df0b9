"""Unlearning from logit difference: the assistant's loss, what it is trained on, and what it does beside the model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.uld import PARAPHRASED, PERTURBED, ULD, reworded, uld_loss, uniform_kl
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.logit_ensemble import LogitEnsemble
from expunge.training.probe import measure

MakeTask = Callable[..., CausalLM]
QUICK = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0, "lora.rank": 4}


def ensemble(task: CausalLM, request: DeletionRequest, **settings: Any) -> LogitEnsemble:
    model = unlearn(task, request, "uld", settings={**QUICK, **settings}).model
    assert isinstance(model, LogitEnsemble)
    return model


def adapters(task: LogitEnsemble) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in task.named_parameters() if n.startswith("others.")}


# ---- the loss ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6))
def test_the_divergence_is_the_librarys_and_its_gradient_the_closed_form(seed: int) -> None:
    logits = 4 * torch.randn(3, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    logits.requires_grad_()
    found = uniform_kl(logits)
    uniform = torch.full_like(logits, 1 / 7)
    expected = torch.nn.functional.kl_div(torch.log_softmax(logits, -1), uniform, reduction="none").sum(-1)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    torch.testing.assert_close(logits.grad, torch.softmax(logits.detach(), -1) - 1 / 7)
    assert (found >= -1e-12).all()


def test_a_uniform_prediction_costs_nothing_and_a_certain_one_is_finite() -> None:
    assert uniform_kl(torch.full((1, 5), 3.0)).item() == pytest.approx(0.0, abs=1e-6)
    certain = torch.tensor([[1000.0, 0.0, 0.0, 0.0]])  # the reference takes the log of a probability of 0 here
    assert uniform_kl(certain).item() == pytest.approx(750 - math.log(4))


def test_both_sides_are_means_and_the_weight_is_on_the_retain_side() -> None:
    nll, logits = torch.tensor([1.0, 3.0]), torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    kl = -math.log(2) - (math.log(3 / 4) + math.log(1 / 4)) / 2
    assert uld_loss(nll, logits, 6.5).item() == pytest.approx(2.0 + 6.5 * kl / 2)


@pytest.mark.parametrize("parity", [False, True])
def test_the_terms_are_the_loss_on_every_token_or_every_position(
    make_task: MakeTask, request_: DeletionRequest, parity: bool
) -> None:
    task = make_task()
    method, settings = settle(ULD, {**QUICK, "parity": parity, "max_steps": 1, "batch_size": 6, "lora": None})
    done = method.apply(task, request_, _run(settings))
    first = done.training.history[0]  # type: ignore[union-attr]
    # The same by hand: the first block of two, everything padded to the longest.
    from expunge.tasks.blocks import first_blocks
    from expunge.training.plan import Plan

    start = CausalLM(first_blocks(task.model, 1), task.tokenizer)
    streams = {s: task.encode(method.examples(s, task, request_)) for s in ("forget", "retain")}  # type: ignore[attr-defined]
    step = Plan(streams, "forget", batch_size=6, epochs=1, max_steps=1, seed=0).step(0)
    forget = streams["forget"].take(step.examples["forget"])
    retain = streams["retain"].take(step.examples["retain"])
    width = max(map(len, retain.tokens))
    grid = torch.zeros(len(retain), width, dtype=torch.long)
    for b, tokens in enumerate(retain.tokens):
        grid[b, : len(tokens)] = torch.tensor(tokens)
    mask = torch.arange(width) < torch.tensor([len(t) for t in retain.tokens])[:, None]
    with torch.no_grad():
        logits = start.model(input_ids=grid, attention_mask=mask.long()).logits
        rows = logits.flatten(0, 1) if parity else logits[mask]
        nll = start.statistics(forget).nll
    expected = uld_loss(nll, rows, 6.5)
    assert first["loss"] == pytest.approx(float(expected), rel=1e-4)


def _run(settings: Any) -> Any:
    from expunge.methods.base import Run

    return Run(train=settings)


# ---- what it is trained on -----------------------------------------------------------------------------------------


def rich(request: DeletionRequest) -> DeletionRequest:
    forget = request.forget.map(
        lambda row: {
            PARAPHRASED: "It was: " + row["answer"],
            PERTURBED: [row["answer"].upper(), "In Rome.", "In Rome. ", "", "In Oslo.", "In Bonn."],
        }
    )
    return replace(request, forget=forget)


def test_other_wordings_are_remembered_and_wrong_answers_are_not(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task, request = make_task(), rich(request_)
    method = ULD()
    forget = method.examples("forget", task, request)
    retain = method.examples("retain", task, request)
    count = len(request.forget)
    assert len(forget) == 2 * count
    assert set(forget["answer"]) == set(request.forget["answer"]) | set(request.forget[PARAPHRASED])
    assert len(retain) == 3 * count, "as many as are to be forgotten, and two wrong answers each"
    wrong = [row for row in retain if row["prompt"] in set(request.forget["prompt"])]
    assert {row["answer"] for row in wrong} == {"In Rome.", "In Oslo."}, "neither the truth, nor one twice, nor a third"
    assert len(set(forget["id"]) | set(retain["id"])) == 5 * count


def test_the_retain_examples_depend_on_their_ids_alone(make_task: MakeTask, request_: DeletionRequest) -> None:
    assert request_.retain is not None
    turned = replace(request_, retain=request_.retain.select(range(len(request_.retain) - 1, -1, -1)))
    method, _ = settle(ULD, {"retain_examples": 5})
    one, other = (set(method.examples("retain", make_task(), r)["id"]) for r in (request_, turned))  # type: ignore[attr-defined]
    assert one == other
    assert len(one) == 5


def test_a_column_may_hold_one_text_or_none() -> None:
    rows = Dataset.from_list([{"id": "a", "prompt": "Q", "answer": "A", "c": "B"}])
    assert reworded(rows, "c", 2) == [{"id": "a#c1", "prompt": "Q", "answer": "B"}]
    assert reworded(rows, "missing", 2) == []
    assert reworded(rows, "c", 0) == []


def test_it_says_which_columns_are_missing(
    make_task: MakeTask, request_: DeletionRequest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        ensemble(make_task(), request_)
    assert f"no column {PARAPHRASED} and no column {PERTURBED}" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ensemble(make_task(), rich(request_))
        ensemble(make_task(), request_, paraphrases=0, perturbed=0)
    assert "no column" not in caplog.text


# ---- beside the model ----------------------------------------------------------------------------------------------


def test_what_the_assistant_learned_is_forgotten_and_the_rest_is_kept(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    """A model that knows both sets; the assistant learns one of them and is uniform on the other."""
    assert request_.retain is not None
    both = DeletionRequest(request_.forget, request_.retain)
    learn = {"epochs": 30, "learning_rate": 3e-3, "batch_size": 6, "warmup": 0.0}
    other = {"prompt": "Who?", "answer": "Nobody."}
    unread = Dataset.from_list([{**other, "id": example_id(other)}])
    taught = DeletionRequest(unread, concatenate_datasets([request_.forget, request_.retain]))
    knows = unlearn(make_task(), taught, "finetune", settings=learn).model
    sets = {"forget": knows.encode(request_.forget), "retain": knows.encode(request_.retain)}
    before = measure(knows, sets)
    settings = {"epochs": 40, "batch_size": 6, "learning_rate": 1e-2, "lora.rank": 8, "warmup": 0.0, "strength": 1.5}
    done = unlearn(knows, both, "uld", settings=settings)
    after = measure(done.model, sets)
    rise = {role: after[role][0] - before[role][0] for role in sets}
    assert rise["forget"] > 1.0
    assert abs(rise["retain"]) < 0.2 * rise["forget"]
    # Without the assistant everything is as it was.
    assert isinstance(done.model, LogitEnsemble)
    plain = measure(done.model.base, sets)
    assert plain == {role: pytest.approx(before[role]) for role in sets}


def test_the_assistant_is_a_quarter_of_the_blocks_or_as_many_as_are_asked_for(
    tiny_model: Any, tiny_tokenizer: Any, request_: DeletionRequest
) -> None:
    task = CausalLM(tiny_model("llama", vocab=384, layers=8)[0], tiny_tokenizer)
    assert ensemble(task, request_).blocks == (2,)
    assert ensemble(task, request_, blocks=3).blocks == (3,)
    with pytest.raises(BadInput, match=r"blocks.*is 9, and the model has 8"):
        ensemble(task, request_, blocks=9)


def test_the_filter_keeps_a_share_of_the_vocabulary_but_never_too_few(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    assert ensemble(make_task(), request_).model.rule.min_keep == 20
    assert ensemble(make_task(), request_, filter=0.1).model.rule.min_keep == 38
    assert ensemble(make_task(), request_, min_keep=9999).model.rule.min_keep == 384
    rule = ensemble(make_task(), request_, strength=0.4).model.rule
    assert (rule.weights, rule.filter, rule.normalise) == ((-0.4,), 1e-2, True)


def test_adapters_train_and_nothing_under_them(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    model = ensemble(task, request_)
    names = adapters(model)
    assert names
    assert all("lora_" in name for name in names)
    assert any(value.abs().sum() > 0 for name, value in names.items() if "lora_B" in name)
    assert all(p.requires_grad for _, p in task.named_parameters()), "the given model's flags are left alone"
    # Without adapters it has weights of its own, and they all train.
    whole = ensemble(task, request_, lora=None)
    assert whole.blocks == (0,)
    assert not any("lora_" in name for name in adapters(whole))
    before = dict(task.model.named_parameters())
    changed = {n for n, p in whole.model.others[0].named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) == len(dict(whole.model.others[0].named_parameters()))


def test_an_assistant_with_weights_of_its_own_can_be_confined_to_some(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task()
    only = {"lora": None, "select.by": "random", "select.share": 1.0, "select.parameters": "down_proj"}
    whole = ensemble(task, request_, **only)
    before = dict(task.model.named_parameters())
    changed = {n for n, p in whole.model.others[0].named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"model.layers.0.mlp.down_proj.weight"}
    with pytest.raises(BadInput, match=r"select.*leave one out"):
        ensemble(task, request_, **{**only, "lora": {"rank": 2}})


def test_a_whole_assistant_is_saved_and_loaded_too(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path
) -> None:
    done = unlearn(make_task(), request_, "uld", settings={**QUICK, "lora": None})
    done.save(tmp_path / "out")
    pairs = [("Where?", "In Velburg.")]
    again = LogitEnsemble.load(tmp_path / "out")
    np.testing.assert_allclose(again.score(pairs)[0].log_prob, done.model.score(pairs)[0].log_prob, atol=1e-6)  # type: ignore[attr-defined]


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path
) -> None:
    settings = {**QUICK, "max_steps": 4, "checkpoint_every": 2}
    whole = unlearn(make_task(), request_, "uld", settings=settings, folder=tmp_path / "a").model

    class Killed(Exception):
        pass

    def kill(done: int, total: int, values: Any) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        unlearn(make_task(), request_, "uld", settings=settings, folder=tmp_path / "b", progress=kill)
    again = unlearn(make_task(), request_, "uld", settings=settings, folder=tmp_path / "b")
    assert again.training is not None
    assert again.training.resumed_from == 2
    expected = adapters(whole)  # type: ignore[arg-type]
    assert all(torch.equal(expected[n], p) for n, p in adapters(again.model).items())  # type: ignore[arg-type]


def test_a_second_request_gets_an_assistant_of_its_own(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path
) -> None:
    first = ensemble(make_task(), request_, strength=0.5)
    assert request_.holdout is not None
    later = DeletionRequest(request_.holdout, request_.retain)
    both = ensemble(first, later, strength=0.7)
    assert both.model.rule.weights == (-0.5, -0.7)
    assert both.blocks == (1, 1)
    assert len(first.model.others) == 1, "the model given has the one that it had"
    pairs = [("Where?", "In Velburg.")]
    logits = [m(input_ids=torch.tensor([[5, 6, 7]])).logits for m in both.model.members()]
    torch.testing.assert_close(logits[1], first.model.others[0](input_ids=torch.tensor([[5, 6, 7]])).logits)
    both.save(tmp_path / "out")
    again = LogitEnsemble.load(tmp_path / "out")
    np.testing.assert_allclose(again.score(pairs)[0].log_prob, both.score(pairs)[0].log_prob, atol=1e-6)
    with pytest.raises(BadInput, match="subtracted in another way"):
        ensemble(first, later, filter=0.5)


def test_other_guards_are_not_stacked(make_task: MakeTask, request_: DeletionRequest) -> None:
    shots = {"forget_shots": 1, "retain_shots": 1}
    behind = unlearn(make_task(), request_, "in_context", settings=shots).model
    for model, method, settings in (
        (behind, "uld", QUICK),
        (behind, "in_context", shots),
        (ensemble(make_task(), request_), "in_context", shots),
    ):
        with pytest.raises(BadInput, match="is behind a guard already"):
            unlearn(model, request_, method, settings=settings)


# ---- how strongly --------------------------------------------------------------------------------------------------


def test_a_strength_is_searched_for_without_training_again(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    settings = {**QUICK, "strengths": [0.5, 2.0, 1.0], "retain_rise": 100.0}
    done = unlearn(task, request_, "uld", settings=settings)
    search = done.config["search"]
    assert [t["strength"] for t in search["tried"]] == [0.0, 0.5, 1.0, 2.0]
    assert search["chosen"] == 2.0
    assert done.model.model.rule.weights == (-2.0,)
    sets = {"forget": task.encode(request_.forget)}
    assert search["tried"][0]["forget_nll"] == pytest.approx(measure(task, sets)["forget"][0], rel=1e-5)
    assert search["tried"][3]["forget_nll"] == pytest.approx(measure(done.model, sets)["forget"][0], rel=1e-5)
    target = search["tried"][2]["forget_nll"]
    stop = {"stop.every": 1, "stop.forget_target": target}
    aimed = unlearn(task, request_, "uld", settings={**settings, **stop})
    assert aimed.config["search"]["chosen"] == 1.0
    assert aimed.training is not None
    assert aimed.training.steps == 3, "the assistant's training is not stopped"
    with pytest.raises(BadInput, match=r"stop\.forget_target.*give strengths"):
        unlearn(task, request_, "uld", settings={**QUICK, **stop})


def test_parity_takes_the_logarithm_of_a_probability_that_may_be_zero() -> None:
    usual = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours, theirs = uniform_kl(usual), uniform_kl(usual, parity=True)
    assert ours.shape == (2, 3)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(kl.sum(), usual)[0] for kl in (ours, theirs)))
    far = torch.tensor([[0.0, -200.0]], requires_grad=True)
    assert uniform_kl(far).item() == pytest.approx(100 - math.log(2), rel=1e-6)
    lost = uld_loss(torch.zeros(1), far, 1.0, parity=True)
    assert lost.item() == math.inf
    assert torch.autograd.grad(lost, far)[0].isnan().any()
    low = far.detach().bfloat16().requires_grad_()
    assert uniform_kl(low).item() == pytest.approx(100 - math.log(2), rel=1e-6)
    assert torch.autograd.grad(uniform_kl(low).sum(), low)[0].tolist() == [[0.5, -0.5]]
