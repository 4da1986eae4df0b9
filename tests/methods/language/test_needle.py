"""Needle moves the located vectors and not one other bit, alone and after another method."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.data.concept_vectors import ConceptRecord, write_concepts
from expunge.errors import BadInput
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.feed_forward import Place, locate_matrix, value_matrices

MakeTask = Callable[..., CausalLM]
EVERY = {"level": 1.0, "vectors": 3}


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A file that names two vectors of a two-layer model."""
    record = ConceptRecord("Velburg", ((0, 5, ""), (1, 9, "")), ("Where?",), ("Who?",))
    write_concepts(tmp_path / "c.json", [record])
    return tmp_path / "c.json"


def moved(before: CausalLM, after: CausalLM) -> dict[str, torch.Tensor]:
    """Parameter -> True where it changed; parameters that did not change are left out."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    return {name: old[name] != p for name, p in new.items() if not torch.equal(old[name], p)}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "olmo2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("settings", [{"ascent_steps": 0}, {"strength": 0.0}, {"retain_weight": 1.0}])
def test_only_the_named_vectors_move(
    make_task: MakeTask, request_: DeletionRequest, named: Path, family: str, settings: dict[str, Any]
) -> None:
    task = make_task(family, tied=family == "gemma2")
    model = unlearn(task, request_, "needle", settings={"file": named, **settings}).model
    changed = moved(task, model)
    here = {m.parameter: m for m in value_matrices(model.model)}
    assert set(changed) == set(here)
    for place in (Place(0, 5), Place(1, 9)):
        matrix = locate_matrix(value_matrices(model.model), place)
        part = matrix.oriented(changed[matrix.parameter])
        assert part[place.dim].float().mean() > 0.9
        part[place.dim] = False
        assert not part.any(), "another vector of the matrix moved"


def test_one_expert_of_many(make_task: MakeTask, request_: DeletionRequest, tmp_path: Path) -> None:
    task = make_task("mixtral")
    place = Place(1, 9, "mlp.experts.down_proj[2]")
    write_concepts(tmp_path / "c.json", [ConceptRecord("Velburg", (tuple(place),), ("Where?",), ("Who?",))])  # type: ignore[arg-type]
    model = unlearn(task, request_, "needle", settings={"file": tmp_path / "c.json"}).model
    ((name, mask),) = moved(task, model).items()
    assert name == "model.layers.1.mlp.experts.down_proj"
    assert mask[2, :, 9].float().mean() > 0.9
    mask[2, :, 9] = False
    assert not mask.any()


def test_the_noise_has_the_stated_length(make_task: MakeTask, request_: DeletionRequest, named: Path) -> None:
    task = make_task()
    for strength in (0.5, 4.0):
        settings = {"file": named, "strength": strength, "ascent_steps": 0}
        model = unlearn(task, request_, "needle", settings=settings).model
        old, new = value_matrices(task.model)[0].vectors[5], value_matrices(model.model)[0].vectors[5]
        assert 0.6 * strength < float((new - old).norm() / old.norm()) < 1.4 * strength


def test_ascent_raises_the_loss_of_what_is_to_go(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    rows = request_.forget.to_list()
    pairs = [(row["prompt"], row["answer"]) for row in rows]

    def loss(model: Any) -> float:
        return float(np.mean([s.nll for s in model.score(pairs)]))

    quiet = unlearn(task, request_, "needle", settings={**EVERY, "ascent_steps": 0})
    loud = unlearn(task, request_, "needle", settings={**EVERY, "ascent_steps": 8, "ascent_rate": 1.0})
    assert loss(loud.model) > loss(quiet.model)
    assert quiet.config["found"] == loud.config["found"]
    json.dumps(loud.config)


def test_it_goes_after_another_method(make_task: MakeTask, request_: DeletionRequest, named: Path) -> None:
    task = make_task()
    training = {"max_steps": 2, "learning_rate": 1e-2, "batch_size": 4, "warmup": 0.0}
    first = unlearn(task, request_, "grad_diff", settings=training)
    both = unlearn(task, request_, "needle", settings={"file": named, "after": "grad_diff", "after_settings": training})
    assert set(moved(first.model, both.model)) == {m.parameter for m in value_matrices(task.model)}  # type: ignore[arg-type]
    assert both.cost.flops > first.cost.flops
    assert len(moved(task, both.model)) > 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"after": "needle"}, "'needle' leaves no changed weights"),
        ({"after": "in_context"}, "'in_context' leaves no changed weights"),
        ({"after": "npoo"}, "there is no 'npoo'.*npo"),
        ({"after": "npo", "after_settings": {"betta": 1}}, "betta.*beta"),
        ({"strength": 0.0, "ascent_steps": 0}, "both 0"),
        ({"file": Path("none.json")}, "cannot be read"),
        ({"modules": "mlp.nothing"}, "called 'mlp.nothing'"),
    ],
)
def test_what_cannot_work_is_refused(
    make_task: MakeTask, request_: DeletionRequest, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        unlearn(make_task(), request_, "needle", settings=settings)


def test_a_place_that_does_not_exist_is_named(make_task: MakeTask, request_: DeletionRequest, tmp_path: Path) -> None:
    write_concepts(tmp_path / "c.json", [ConceptRecord("Velburg", ((7, 0, ""),), ("Where?",), ("Who?",))])
    with pytest.raises(BadInput, match=r"c.json \(Velburg\): layer 7 has no value vectors"):
        unlearn(make_task(), request_, "needle", settings={"file": tmp_path / "c.json"})


def test_a_concept_that_is_nowhere_is_said_with_the_null(make_task: MakeTask, request_: DeletionRequest) -> None:
    with pytest.raises(BadInput, match=r"no value vector carries a concept.*raise level"):
        unlearn(make_task(), request_, "needle", settings={"level": 1e-9})
