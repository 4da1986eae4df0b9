"""FLAT against f-divergence theory, against the definition of the authors' code, and in the loop."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.flat import FLAT, flat_loss, flat_reference_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.plan import Plan

FIVE = ("tv", "kl", "js", "pearson", "jeffrey")
LARGE = {"learning_rate": 1e-2, "warmup": 0.0, "schedule": "constant"}
probability = st.floats(0, 1)

# f, and the output activation g; the conjugate is taken numerically below.
THEORY: dict[str, tuple[Any, Any]] = {
    "tv": (lambda u: abs(u - 1) / 2, lambda v: np.tanh(v) / 2),
    "kl": (lambda u: u * np.log(u), lambda v: v),
    "js": (lambda u: u * np.log(u) - (1 + u) * np.log((1 + u) / 2), lambda v: math.log(2) - np.log1p(np.exp(-v))),
    "pearson": (lambda u: (u - 1) ** 2, lambda v: v),
}


@pytest.mark.parametrize("divergence", THEORY)
@pytest.mark.parametrize(("a", "c"), [(0.0, 0.0), (0.2, 0.7), (0.9, 0.1), (1.0, 1.0)])
def test_it_is_the_variational_form_of_its_divergence(divergence: str, a: float, c: float) -> None:
    """-g(a) + sup_u (u g(c) - f(u)), the supremum over a fine grid."""
    f, g = THEORY[divergence]
    u = np.linspace(1e-6, 20, 2_000_001)
    conjugate = np.max(u * g(c) - f(u))
    found = flat_loss(torch.tensor(a, dtype=torch.float64), torch.tensor(c, dtype=torch.float64), divergence)
    assert found.item() == pytest.approx(-g(a) + conjugate, abs=1e-6)


def test_values_by_hand() -> None:
    a, c = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    by_hand = {
        "tv": 0.5 * (math.exp(0.8) - 1) / (math.exp(0.8) + 1) - 0.5 * (math.e - 1) / (math.e + 1),
        "kl": math.exp(-0.6) - 0.5,
        "js": math.log((1 + math.exp(-0.5)) * (1 + math.exp(0.4)) / 4),
        "pearson": 0.4 + 0.04 - 0.5,
        "jeffrey": 0.4 + 0.04 + 0.004 - 0.5,
    }
    assert {d: flat_loss(a, c, d).item() for d in FIVE} == pytest.approx(by_hand)


@pytest.mark.parametrize("divergence", FIVE)
@given(a=probability, c=probability)
def test_the_template_is_pulled_up_and_the_answer_pushed_down(divergence: str, a: float, c: float) -> None:
    x, y = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (a, c))
    flat_loss(x, y, divergence).sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    closed = {
        "tv": (-(1 - math.tanh(a) ** 2) / 2, (1 - math.tanh(c) ** 2) / 2),
        "kl": (-1.0, math.exp(c - 1)),
        "js": (-1 / (1 + math.exp(a)), 1 / (1 + math.exp(-c))),
        "pearson": (-1.0, 1 + c / 2),
        "jeffrey": (-1.0, 1 + c / 2 + 3 * c * c / 16),
    }[divergence]
    assert (x.grad.item(), y.grad.item()) == pytest.approx(closed, rel=1e-12)
    assert x.grad.item() < 0 < y.grad.item()


@pytest.mark.parametrize(
    ("divergence", "why"),
    [
        ("reverse_kl", "raises the answer to be forgotten"),
        ("Squared-Hellinger", "raises the answer to be forgotten"),
        ("neyman", "lowers both answers"),
    ],
)
def test_inverted_divergences_are_refused_with_the_reason(divergence: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"wrong sign and {why}"):
        flat_loss(torch.tensor(0.1), torch.tensor(0.2), divergence)
    with pytest.raises(BadInput, match=f"flat: divergence.*wrong sign and {why}.*tv"):
        settle(FLAT, {"divergence": divergence})
    with pytest.raises(BadInput, match="'hinge' is not known"):
        flat_loss(torch.tensor(0.1), torch.tensor(0.2), "hinge")
    with pytest.raises(BadInput, match="flat: divergence"):
        settle(FLAT, {"divergence": "hinge"})


def slots(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean over all B (T - 1) slots, one by one, 0 where there is no label."""
    total, (rows, width) = torch.zeros((), dtype=logits.dtype), labels.shape
    for b in range(rows):
        for t in range(width - 1):
            if labels[b, t + 1] != -100:
                total = total + torch.softmax(logits[b, t], -1)[labels[b, t + 1]]
    return total / (rows * (width - 1))


@pytest.mark.parametrize("divergence", FIVE)
def test_the_authors_form_averages_over_all_slots_before_the_divergence(divergence: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(3, t, 11, generator=generator, dtype=torch.float64) * 3 for t in (7, 9)]
    labels = [torch.randint(0, 11, (3, t), generator=generator) for t in (7, 9)]
    for label in labels:
        label[0, :4], label[1, :2], label[1, 5:], label[2, :] = -100, -100, -100, -100
    for one in logits:
        one.requires_grad_()
    expected = flat_loss(slots(logits[0], labels[0]), slots(logits[1], labels[1]), divergence)
    gradients = torch.autograd.grad(expected, logits)
    found = flat_reference_loss(logits[0], labels[0], logits[1], labels[1], divergence)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(torch.autograd.grad(found, logits), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def test_all_slots_dilute_a_probability() -> None:
    """Spec: a 40-token answer in 512 slots counts about 0.08 of its probability."""
    labels = torch.full((1, 513), -100)
    labels[0, 100:140] = 1
    logits = torch.zeros(1, 513, 3)
    logits[..., 1] = 50.0
    loss = flat_reference_loss(logits, labels, logits, torch.full((1, 513), -100), "kl")
    assert loss.item() == pytest.approx(math.exp(-1) - 40 / 512)


def first(task: CausalLM, request: DeletionRequest, **settings: Any) -> dict[str, float]:
    done = unlearn(task, request, "flat", settings={**LARGE, "max_steps": 1, "batch_size": 4, **settings})
    assert done.training is not None
    return done.training.history[0]


@pytest.fixture(scope="module")
def knowing(tiny_model: Any, tiny_tokenizer: Any, request_: DeletionRequest) -> CausalLM:
    """A model that has learned the answers, and to refuse other questions: what it cannot say it learns slowly."""
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    assert request_.retain is not None
    refused = request_.retain.map(lambda _: {"answer": "I don't know."})
    taught = DeletionRequest(request_.holdout, concatenate_datasets([request_.forget, refused]))
    settings = {**LARGE, "epochs": 40, "batch_size": 18}
    model = unlearn(task, taught, "finetune", settings=settings).model
    assert isinstance(model, CausalLM)
    return model


def pairs(task: CausalLM, request: DeletionRequest) -> list[list[tuple[str, str]]]:
    """(template pairs, forget pairs) of the first step."""
    pool = settle(FLAT, {})[0].examples("alternative", task, request)  # type: ignore[attr-defined]
    streams: Any = {"forget": task.encode(request.forget), "alternative": task.encode(pool)}
    chosen = Plan(streams, "forget", batch_size=4, epochs=5, max_steps=1, seed=0).step(0).examples
    sets = {"alternative": pool, "forget": request.forget}
    return [[(sets[s][i]["prompt"], sets[s][i]["answer"]) for i in chosen[s]] for s in ("alternative", "forget")]


@pytest.mark.parametrize("divergence", FIVE)
def test_every_example_has_a_divergence_of_its_own(
    knowing: CausalLM, request_: DeletionRequest, divergence: str
) -> None:
    means = [[float(np.exp(s.log_prob).mean()) for s in knowing.score(one)] for one in pairs(knowing, request_)]
    expected = flat_loss(torch.tensor(means[0]), torch.tensor(means[1]), divergence).mean().item()
    found = first(knowing, request_, divergence=divergence, forget_weight=0.5)["loss/flat"]
    assert found == pytest.approx(0.5 * expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("divergence", FIVE)
def test_parity_is_the_authors_form_on_batches_padded_to_its_length(
    knowing: CausalLM, request_: DeletionRequest, divergence: str
) -> None:
    inputs: list[Any] = []
    for chosen in pairs(knowing, request_):
        encoded = knowing.encoder.encode(chosen)
        ids, labels = torch.zeros(4, 60, dtype=torch.long), torch.full((4, 60), -100)
        for b in range(4):
            row, start = torch.tensor(encoded.tokens[b]), encoded.starts[b]
            ids[b, : len(row)], labels[b, start : len(row)] = row, row[start:]
        with torch.no_grad():
            inputs += [knowing.model(ids).logits, labels]
    expected = flat_reference_loss(inputs[0], inputs[1], inputs[2], inputs[3], divergence).item()
    found = first(knowing, request_, divergence=divergence, parity=True, parity_length=60)["loss/flat"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert found != pytest.approx(first(knowing, request_, divergence=divergence)["loss/flat"], abs=1e-4)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_change_nothing(knowing: CausalLM, request_: DeletionRequest, size: int) -> None:
    whole, cut = (first(knowing, request_, micro_batch_size=m) for m in (4, size))
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-4, abs=1e-8)
    assert cut["gradient_norm"] == pytest.approx(whole["gradient_norm"], rel=1e-3)


def test_rows_that_another_term_asked_for_do_not_count(knowing: CausalLM, request_: DeletionRequest) -> None:
    method = settle(FLAT, {})[0]
    (term,) = method.objective().terms  # type: ignore[attr-defined]
    template, forget = (knowing.encoder.encode(one) for one in pairs(knowing, request_))
    with torch.no_grad():
        answers, everything = (
            term.values(knowing.statistics(forget, positions=p), knowing.statistics(template, positions=p))
            for p in ("answer", "attended")
        )
    torch.testing.assert_close(everything, answers)


def test_it_forgets_with_forget_data_alone(knowing: CausalLM, request_: DeletionRequest) -> None:
    settings = {**LARGE, "epochs": 10, "batch_size": 6, "divergence": "kl", "answers": ("I don't know.",)}
    done = unlearn(knowing, DeletionRequest(request_.forget), "flat", settings=settings)
    true = [(r["prompt"], r["answer"]) for r in request_.forget.to_list()]
    template = [(prompt, "I don't know.") for prompt, _ in true]

    def mean(model: Any, asked: list[tuple[str, str]]) -> float:
        return float(np.mean([np.exp(s.log_prob).mean() for s in model.score(asked)]))

    assert mean(done.model, template) > mean(knowing, template)
    assert mean(done.model, true) < mean(knowing, true)
    assert done.training is not None
    assert done.training.cost.sequences == 10 * 12, "neither a retain set nor a reference is read"


def test_defaults_are_those_of_the_papers_code() -> None:
    method, train = settle(FLAT, {})
    assert (method.config.divergence, method.config.retain, method.config.parity_length) == ("tv", "none", 500)
    assert method.required() == ()
    assert (train.epochs, train.batch_size, train.learning_rate) == (5, 64, 1e-5)
    assert settle(FLAT, {"retain": "kl"})[0].required() == ("retain",)
