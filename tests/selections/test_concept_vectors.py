"""The selection of located value vectors: which, and that any objective then moves nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.selections.concept_vectors import ConceptVectors, ConceptVectorsConfig, TraceSettings, trace_of
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.feed_forward import value_matrices

MakeTask = Callable[..., CausalLM]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_mask_is_of_whole_vectors(make_task: MakeTask, request_: DeletionRequest, family: str) -> None:
    task = make_task(family)
    mask = ConceptVectors(ConceptVectorsConfig(level=1.0, vectors=5)).build(task, request_, seed=0)
    assert sum(int(part.sum()) for part in mask.values() if part is not None) == 5 * 32
    for matrix in value_matrices(task.model):
        if (part := mask.get(matrix.parameter)) is not None:
            assert set(matrix.oriented(part).sum(-1).tolist()) <= {0, 32}


def test_any_objective_confined_to_it_moves_nothing_else(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    settings: dict[str, Any] = {
        "select.by": "concept_vectors", "select.level": 1.0, "select.vectors": 5,
        "max_steps": 2, "learning_rate": 1e-2, "warmup": 0.0, "weight_decay": 0.1,
    }  # fmt: skip
    model = unlearn(task, request_, "npo", settings=settings).model
    old, new = dict(task.named_parameters()), dict(model.named_parameters())
    changed = {name: old[name] != p for name, p in new.items() if not torch.equal(old[name], p)}
    assert changed
    assert all(name.endswith("mlp.down_proj.weight") for name in changed)
    assert sum(int(part.any(0).sum()) for part in changed.values()) <= 5


def test_groups_are_concepts_of_their_own(make_task: MakeTask, request_: DeletionRequest) -> None:
    groups = [f"person {k % 2}" for k in range(len(request_.forget))]
    grouped = DeletionRequest(request_.forget.add_column("group", groups), request_.retain)
    found = trace_of(make_task(), grouped, TraceSettings(level=1.0, vectors=2), seed=0)
    assert list(found) == ["person 0", "person 1"]
    assert all(len(places) <= 2 for places in found.values())
    assert list(trace_of(make_task(), request_, TraceSettings(level=1.0), seed=0)) == ["the forget set"]


def test_it_is_the_same_for_any_order_of_examples(make_task: MakeTask, request_: DeletionRequest) -> None:
    turned = DeletionRequest(request_.forget.select(range(5, -1, -1)), request_.retain)
    settings = TraceSettings(level=1.0, vectors=4)
    assert trace_of(make_task(), turned, settings, 0) == trace_of(make_task(), request_, settings, 0)


def test_without_a_trace_the_null_is_in_the_message(make_task: MakeTask, request_: DeletionRequest) -> None:
    with pytest.raises(BadInput, match="no value vector carries a concept"):
        trace_of(make_task(), request_, TraceSettings(level=1e-9), seed=0)
