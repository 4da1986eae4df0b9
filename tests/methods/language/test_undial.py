"""UNDIAL: by hand, its gradient, the reference's unmasked average, and what it reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.undial import UNDIAL, UNDIALConfig, undial_loss, undial_reference_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

MakeTask = Callable[..., CausalLM]
VOCABULARY = 120


def test_one_token_by_hand() -> None:
    # The reference says (1/2, 1/4, 1/4); beta = log 4 leaves (1/8, 1/4, 1/4) of the answer: q = (1/5, 2/5, 2/5).
    reference = torch.tensor([[0.5, 0.25, 0.25]] * 2, dtype=torch.float64).log()
    logits = torch.tensor([[0.6, 0.3, 0.1]] * 2, dtype=torch.float64).log()
    loss = undial_loss(logits, reference, torch.tensor([0, -100]), math.log(4))
    expected = -(0.2 * math.log(0.6) + 0.4 * math.log(0.3) + 0.4 * math.log(0.1))
    assert loss.tolist() == pytest.approx([expected, 0.0])


def draw(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    both = 2 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return both[0].requires_grad_(), both[1]


@given(st.integers(0, 10**6), st.floats(0, 30))
def test_the_gradient_is_the_distance_of_the_two_distributions(seed: int, beta: float) -> None:
    logits, reference = draw(seed, 4, 6)
    targets = torch.tensor([seed % 6, 0, -100, 5])
    (gradient,) = torch.autograd.grad(undial_loss(logits, reference.__getitem__, targets, beta).sum(), logits)
    onehot = F.one_hot(targets.clamp_min(0), 6).double()
    expected = logits.detach().softmax(-1) - (reference - beta * onehot).softmax(-1)
    expected[2] = 0
    torch.testing.assert_close(gradient, expected)


@given(st.integers(0, 10**6), st.floats(0, 30), st.floats(-50, 50))
def test_it_is_lowest_at_the_lowered_reference_and_blind_to_shifts(seed: int, beta: float, shift: float) -> None:
    logits, reference = draw(seed, 3, 6)
    targets = torch.tensor([1, 2, 3])
    goal = (reference - beta * F.one_hot(targets, 6).double()).requires_grad_()
    lowest = undial_loss(goal, reference, targets, beta)
    (gradient,) = torch.autograd.grad(lowest.sum(), goal)
    assert gradient.abs().max() < 1e-12
    loss = undial_loss(logits, reference, targets, beta)
    assert (loss >= lowest - 1e-9).all()
    torch.testing.assert_close(undial_loss(logits + shift, reference - shift, targets, beta), loss)


def plain_reference(logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor, beta: float) -> torch.Tensor:
    """Slot by slot; a negative index counts from the end, as it does in the reference."""
    losses = []
    for b in range(len(labels)):
        for t in range(labels.shape[1] - 1):
            lowered = reference[b, t].clone()
            lowered[labels[b, t + 1]] -= beta
            losses.append(-(lowered.softmax(-1) * logits[b, t].log_softmax(-1)).sum())
    return torch.stack(losses).mean()


@given(st.integers(0, 10**6), st.floats(0, 30))
def test_parity_lowers_token_v_minus_100_where_there_is_no_label(seed: int, beta: float) -> None:
    logits, reference = draw(seed, 2, 5, VOCABULARY)
    labels = torch.tensor([[-100, -100, 7, 119, 2], [-100, 3, 2, -100, -100]])
    ours = undial_reference_loss(logits, reference, labels, beta)
    plain = plain_reference(logits, reference, labels, beta)
    torch.testing.assert_close(ours, plain)
    (mine,) = torch.autograd.grad(ours, logits)
    (theirs,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(mine, theirs)
    assert (mine[:, -1] == 0).all()


def test_parity_needs_a_hundred_tokens(tiny_model: Any, request_: DeletionRequest) -> None:
    logits, reference = draw(0, 1, 3, 99)
    with pytest.raises(ValueError, match="99"):
        undial_reference_loss(logits, reference, torch.tensor([[-100, 1, 2]]), 1.0)
    words = Tokenizer(WordLevel({"<pad>": 0, "<bos>": 1, "<eos>": 2, "word": 3}, unk_token="word"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="word"
    )
    small = CausalLM(tiny_model("llama", vocab=99)[0], tokenizer)
    with pytest.raises(BadInput, match=r"parity.*99 tokens"):
        unlearn(small, request_, "undial", settings={"parity": True})


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_on_a_model_it_is_the_pure_function(make_task: MakeTask, request_: DeletionRequest, positions: str) -> None:
    task, before = make_task(seed=1), make_task(seed=2)
    encoded = task.encode(request_.forget)
    method = UNDIAL(UNDIALConfig(beta=3.0, parity=positions == "all"))
    (term,) = method.objective().active()
    assert term.positions == positions
    stats, old = (t.statistics(encoded, positions=term.positions) for t in (task, before))
    stats.reference_logits = old.logits.detach().__getitem__
    ours = term.partial_sum([stats]) / term.divisor(*stats.sizes(term.positions))

    width = max(len(t) for t in encoded.tokens)
    ids, labels = torch.zeros(len(encoded), width, dtype=torch.long), torch.full((len(encoded), width), -100)
    mask = torch.zeros_like(ids)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        ids[b, : len(tokens)], mask[b, : len(tokens)] = torch.from_numpy(tokens), 1
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    logits, reference = (t.model(input_ids=ids, attention_mask=mask).logits for t in (task, before))
    if positions == "all":
        plain = plain_reference(logits, reference.detach(), labels, 3.0)
    else:
        kept = labels[:, 1:] != -100
        chosen = [z[:, :-1][kept] for z in (logits, reference.detach())]
        plain = undial_loss(*chosen, labels[:, 1:][kept], 3.0).mean()  # type: ignore[call-arg]
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    ours.backward()
    mine = [p.grad.clone() for p in task.model.parameters() if p.grad is not None]
    task.model.zero_grad()
    plain.backward()
    theirs = [p.grad for p in task.model.parameters() if p.grad is not None]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_in_parity_a_batch_in_one_piece_gives_the_reference_s_number(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task()
    encoded = task.encode(request_.forget)
    logits = task.statistics(encoded, positions="all").logits.detach().view(len(encoded), -1, 384)
    labels = torch.full(logits.shape[:2], -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    settings = {"max_steps": 1, "batch_size": 6, "warmup": 0.0, "parity": True}
    done = unlearn(task, request_, "undial", settings=settings)
    assert done.training is not None
    # At the first step the model is its own reference.
    expected = undial_reference_loss(logits, logits, labels, 10.0)
    assert done.training.history[0]["loss/undial"] == pytest.approx(float(expected), rel=1e-5)


def test_the_loop_averages_over_the_tokens_of_the_step_however_it_is_cut(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task()
    with torch.no_grad():
        stats = task.statistics(task.encode(request_.forget))
        expected = float(undial_loss(stats.logits, stats.logits, stats.targets, 10.0).mean())
    common = {"max_steps": 2, "batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0}
    runs = [unlearn(task, request_, "undial", settings={**common, "micro_batch_size": m}) for m in (None, 2, 1)]
    for run in runs:
        assert run.training is not None
        assert run.training.history[0]["loss/undial"] == pytest.approx(expected, rel=1e-5)
        for key in ("loss", "gradient_norm"):
            assert run.training.history[1][key] == pytest.approx(runs[0].training.history[1][key], rel=1e-3)  # type: ignore[union-attr]


def test_the_retain_set_is_not_read_at_the_default_weight() -> None:
    method, train = settle(UNDIAL, {})
    assert method.required() == ()
    assert method.objective().streams() == ("forget",)  # type: ignore[attr-defined]
    assert (method.config.beta, method.config.forget_weight, train.learning_rate, train.epochs) == (10.0, 1.0, 1e-4, 10)
    assert settle(UNDIAL, {"retain_weight": 0.5})[0].required() == ("retain",)
    kl = settle(UNDIAL, {"retain_weight": 0.5, "retain": "kl", "parity": True})[0].objective()  # type: ignore[attr-defined]
    assert [t.positions for t in kl.active()] == ["all", "all"]


def test_trained_answers_become_unlikely_and_the_rest_of_the_prediction_stays(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task(tied=True)
    encoded = task.encode(request_.forget)
    settings = {"epochs": 60, "batch_size": 6, "learning_rate": 1e-2, "warmup": 0.0}
    new = unlearn(task, request_, "undial", settings=settings).model
    with torch.no_grad():
        old, now = task.statistics(encoded), new.statistics(encoded)
    first = undial_loss(old.logits, old.logits, old.targets, 10.0).mean()
    last = undial_loss(now.logits, old.logits, old.targets, 10.0).mean()
    assert last < first
    assert now.nll.mean() > old.nll.mean() + 0.5
