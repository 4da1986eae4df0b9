from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.gcg import GCG, _Search, candidates, token_gradient
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.intervene import embedding_table, embeddings_at, insert_tokens


def pairs_of(request: DeletionRequest) -> list[tuple[str, str]]:
    return [(row["prompt"], row["answer"]) for row in request.forget.to_list()]


def search(lm: CausalLM, request: DeletionRequest, **settings: object) -> _Search:
    config = GCG.Config(**{"steps": (0, 1), "tokens": 3, "width": 16, "top": 8, **settings})
    lm.model.requires_grad_(False)
    return _Search(lm, pairs_of(request), config, 0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_the_gradient_is_the_finite_difference(
    family: str, make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """Mixing a little of a token into a place changes the loss by its one-hot gradient (weights in float64)."""
    lm = make_lm(0, family)
    lm.model.double()
    found = search(lm, request_)
    found.table = embedding_table(lm.model)
    drawn = [0, 1, 2]
    gradient = found.gradient(drawn)
    part = insert_tokens(found.encoded.take(drawn), [found.places[k] for k in drawn], found.suffix.tolist())
    at = torch.tensor([found.places[k] for k in drawn])

    def loss(vectors: torch.Tensor) -> float:
        with embeddings_at(lm.model, at, vectors), torch.no_grad():
            return float(lm.statistics(part).mean_nll.double().mean())

    own, step = found.table[found.suffix], 0.05
    for place, token in ((0, 17), (1, 40), (2, 300)):
        shift = torch.zeros_like(own)
        shift[place] = step * found.table[token]
        slope = (loss(own + shift) - loss(own - shift)) / (2 * step)
        assert slope == pytest.approx(float(gradient[place, token]), rel=0.05, abs=2e-4)


def test_token_gradient_by_hand() -> None:
    found = token_gradient(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, -1.0]]))
    assert found.tolist() == [[1.0, 2.0, 1.0]]


@given(st.integers(0, 99), st.integers(1, 6), st.integers(1, 9), st.integers(1, 30))
def test_candidates_change_one_place_to_a_promising_token(seed: int, length: int, top: int, count: int) -> None:
    luck = torch.Generator().manual_seed(seed)
    gradient = torch.randn(length, 12, generator=luck)
    suffix = torch.randint(0, 12, (length,), generator=luck)
    allowed = torch.arange(12) % 4 != 0
    made = candidates(suffix, gradient, count, top, allowed, np.random.default_rng(seed))
    assert made.shape == (count, length)
    differs = made != suffix
    assert (differs.sum(1) <= 1).all()
    for row, place in torch.nonzero(differs).tolist():
        token = int(made[row, place])
        assert allowed[token]
        better = (gradient[place][allowed] < gradient[place, token]).sum()
        assert better < top


def test_one_by_one_is_the_same_as_in_a_batch(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    lm = make_lm(0)
    tried = torch.tensor([[17, 5, 30], [40, 41, 42]])
    both = [search(lm, request_, batched=b).losses(tried, [0, 3]) for b in (True, False)]
    assert both[0] == pytest.approx(both[1], abs=1e-5)
    assert both[0][0] != both[0][1]


def test_a_search_only_gets_better_and_stays_readable(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    found = search(make_lm(0), request_, batch_size=8)
    shown = list(range(8))
    losses = [float(found.losses(found.suffix[None], shown)[0])]
    for _ in range(4):
        found.step()
        losses.append(float(found.losses(found.suffix[None], shown)[0]))
        assert found.text().isascii()
        assert found.victim.tokenizer(found.text(), add_special_tokens=False)["input_ids"] == found.suffix.tolist()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_a_guard_gives_way_to_a_suffix(
    guarded: CausalLM, make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """The suffix found on one half makes the other half likelier; a random one and a model that never knew do not."""
    settings = {"steps": (0, 12), "tokens": 3, "width": 48, "top": 32, "split": "examples"}
    finding = run_one(
        GCG(GCG.Config(**settings)), Observations({"unlearned": guarded.copy(), "oracle": make_lm(3)}, request_)
    )
    assert finding.status == "measured", finding.note
    u, o = finding.estimates["unlearned"], finding.estimates["oracle"]
    assert u["heldout_gain"].value > 2 * u["null_gain"].value
    assert u["heldout_gain"].value > 3 * o["heldout_gain"].value


@pytest.mark.parametrize("settings", [{"steps": (0,)}, {"width": 0}, {"tokens": 0}])
def test_no_budget_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError):
        GCG.Config(**settings)
