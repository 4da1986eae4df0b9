"""CE-U: by hand, its gradient in closed form, and which tokens of an answer it leaves alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.language.ceu import CEU, CEUConfig, ceu_loss, ceu_reference_loss, place_in_example
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.padded import Padded, objective_value

MakeTask = Callable[..., CausalLM]


def test_one_token_by_hand() -> None:
    # p = (.5, .3, .2), target 0: q = (0, .6, .4); prompt rows count nothing.
    logits = torch.tensor([[0.5, 0.3, 0.2]] * 2, dtype=torch.float64).log()
    loss = ceu_loss(logits, torch.tensor([0, -100]))
    assert loss.tolist() == pytest.approx([-0.6 * math.log(0.3) - 0.4 * math.log(0.2), 0.0])


@given(st.integers(0, 10**6), st.integers(2, 7))
def test_the_gradient_in_closed_form(seed: int, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(5, vocabulary, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    targets = torch.randint(vocabulary, (5,), generator=generator)
    targets[4] = -100
    (gradient,) = torch.autograd.grad(ceu_loss(logits, targets).sum(), logits)
    p = logits.detach().softmax(-1)
    p_y = p.gather(1, targets.clamp_min(0)[:, None])
    expected = (-p * p_y / (1 - p_y)).scatter(1, targets.clamp_min(0)[:, None], p_y)
    expected[4] = 0
    torch.testing.assert_close(gradient, expected)
    # The push fades as the answer does, and never moves the logits as a whole.
    assert gradient.sum(-1).abs().max() < 1e-12
    assert (gradient[:4].abs().sum(-1) <= 2 * p_y[:4, 0] + 1e-12).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_rows_are_numbered_within_their_examples(counts: list[int]) -> None:
    example = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    assert place_in_example(example).tolist() == [k for count in counts for k in range(count)]


def reference(task: CausalLM, request: DeletionRequest, ignored: int) -> float:
    """As open-unlearning does it: padded labels, a running count of them, one mean over what is left."""
    encoded = task.encode(request.forget)
    width = max(len(t) for t in encoded.tokens)
    ids, labels = torch.zeros(len(encoded), width, dtype=torch.long), torch.full((len(encoded), width), -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        ids[b, : len(tokens)] = torch.from_numpy(tokens)
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    with torch.no_grad():
        logits = task.model(input_ids=ids).logits
    losses = []
    for b in range(len(encoded)):
        seen = 0
        for t in range(width - 1):
            if labels[b, t + 1] == -100:
                continue
            seen += 1
            if seen > ignored:
                p = logits[b, t].double().softmax(-1)
                q = p.clone()
                q[labels[b, t + 1]] = 0
                losses.append(float(-(q / q.sum() * p.log()).sum()))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("ignored", [0, 1, 4])
def test_the_loop_averages_over_what_is_left_however_a_step_is_cut(
    make_task: MakeTask, request_: DeletionRequest, ignored: int
) -> None:
    task = make_task()
    common = {"max_steps": 2, "batch_size": 6, "learning_rate": 1e-3, "warmup": 0.0}
    common["ignore_first_n_answer_tokens"] = ignored
    runs = [unlearn(task, request_, "ceu", settings={**common, "micro_batch_size": m}) for m in (None, 2, 1)]
    for run in runs:
        assert run.training is not None
        assert run.training.history[0]["loss"] == pytest.approx(reference(task, request_, ignored), rel=1e-5)
        for key in ("loss", "gradient_norm"):
            assert run.training.history[1][key] == pytest.approx(runs[0].training.history[1][key], rel=1e-3)  # type: ignore[union-attr]


def test_answers_with_no_token_left_are_left_out_and_a_set_of_those_is_refused(
    make_task: MakeTask, request_: DeletionRequest, caplog: pytest.LogCaptureFixture
) -> None:
    task = make_task()
    rows = [{"prompt": "Where?", "answer": "x"}, {"prompt": "Where was it?", "answer": "In Velburg or Salt."}]
    request = DeletionRequest(Dataset.from_list([{**row, "id": example_id(row)} for row in rows]))
    settings = {"max_steps": 1, "warmup": 0.0, "ignore_first_n_answer_tokens": 3}
    with caplog.at_level(logging.WARNING):
        done = unlearn(task, request, "ceu", settings=settings)
    assert "1 of 2 examples" in caplog.text
    assert done.training is not None
    assert done.training.history[0]["loss"] == pytest.approx(reference(task, request, 3), rel=1e-5)
    with pytest.raises(BadInput, match="ignore_first_n_answer_tokens"):
        unlearn(task, request, "ceu", settings={**settings, "ignore_first_n_answer_tokens": 50})


@pytest.mark.parametrize("ignored", [0, 1, 2, 3])
def test_the_whole_objective_averages_over_what_is_left_of_ragged_answers(ignored: int) -> None:
    generator = torch.Generator().manual_seed(ignored)
    logits = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    # Four answer tokens, two, one and none.
    labels = torch.tensor(
        [[-100, 3, 1, 5, 0], [-100, -100, 2, 4, -100], [-100, -100, -100, -100, 1], [-100, -100, -100, -100, -100]]
    )
    objective = CEU(CEUConfig(ignore_first_n_answer_tokens=ignored)).objective()
    ours, plain = (
        objective_value(objective, {"forget": Padded(logits, labels)}),
        ceu_reference_loss(logits, labels, ignored),
    )
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)))


def test_it_needs_neither_a_retain_set_nor_a_reference() -> None:
    objective = CEU(CEUConfig()).objective()
    assert objective.streams() == ("forget",)
    assert objective.reference("forget") == "none"
    assert CEUConfig().ignore_first_n_answer_tokens == 1


@pytest.mark.parametrize("ignored", [0, 1, 2])
def test_parity_counts_the_first_labels_before_the_shift(ignored: int) -> None:
    generator = torch.Generator().manual_seed(ignored)
    logits = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[3, 1, 5, -100, -100], [-100, -100, 0, 2, 4]])
    # (row, answer token) by hand: in the first example the label of position 0 is one of those left alone.
    rows = {0: [(0, 0, 1), (0, 1, 5), (1, 1, 0), (1, 2, 2), (1, 3, 4)]}
    rows[1] = [(0, 0, 1), (0, 1, 5), (1, 2, 2), (1, 3, 4)]
    rows[2] = [(0, 1, 5), (1, 3, 4)]
    losses = []
    for b, t, y in rows[ignored]:
        p = logits[b, t].softmax(-1)
        q = p.detach().clone()
        q[y] = 0
        losses.append(-(q / q.sum() * p.log()).sum())
    plain, ours = sum(losses) / len(losses), ceu_reference_loss(logits, labels, ignored)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, plain)))
    assert ceu_reference_loss(logits, labels, 5).isnan()
