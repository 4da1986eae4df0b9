"""What every method must do, on every kind of tiny model it serves. New methods are found by being there."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from expunge.errors import BadInput
from expunge.methods.base import Method, ObjectiveMethod, Run, settle
from expunge.methods.run import METHODS, unlearn
from expunge.requests.request import DeletionRequest
from expunge.runs.models import stated_level
from expunge.selections.random import Random, RandomConfig
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.loading import load_task
from expunge.training.settings import TrainSettings

MakeTask = Callable[..., CausalLM]
ALL = METHODS.names()
LANGUAGE = [name for name in ALL if "causal_lm" in METHODS.get(name).tasks]
TRAINED = [name for name in LANGUAGE if issubclass(METHODS.get(name), ObjectiveMethod)]
FAMILIES = ("llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox")
# All methods on two families that differ most; the others on two methods that together use every path of the loop.
MATRIX = [(m, f) for m in LANGUAGE for f in ("llama", "mixtral")]
MATRIX += [(m, f) for m in ("npo", "retrain") for f in FAMILIES if f not in ("llama", "mixtral")]
QUICK = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0}
# What a method's own defaults ask too much of a tiny model for.
OWN: dict[str, dict[str, Any]] = {
    "needle": {"level": 1.0, "vectors": 4},
    "in_context": {"forget_shots": 1, "retain_shots": 1},
}
# Levels of methods that leave the weights as they are and put something beside or before them.
BESIDE = ("guard", "adapter")
IN_PLACE = [name for name in TRAINED if METHODS.get(name).removal_level not in BESIDE]


def quick(method: str, **more: Any) -> dict[str, Any]:
    """Settings of a short run, those of training only where the method trains."""
    return {**OWN.get(method, {}), **(QUICK if method in TRAINED else {}), **more}


def state(task: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def start_of(method: str, task: CausalLM, settings: dict[str, Any]) -> CausalLM:
    """The model that training starts from: some methods give all weights, or the last, new values."""
    chosen, train = settle(METHODS.get(method), settings)
    assert isinstance(chosen, ObjectiveMethod)
    start = chosen.start(task, Run(train=train))
    assert isinstance(start, CausalLM)
    return start


def hooks(task: CausalLM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in task.model.modules())


@pytest.mark.parametrize(("method", "family"), MATRIX)
def test_a_new_model_comes_out_and_the_given_one_stays(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path, method: str, family: str
) -> None:
    task = make_task(family, tied=family == "qwen2")
    task.model.train()
    before, mode, plain_hooks = state(task), task.model.training, hooks(task)
    done = unlearn(task, request_, method, settings=quick(method))
    after = state(task)
    assert all(torch.equal(before[name], after[name]) for name in before), "the given model was changed"
    assert task.model.training == mode
    assert hooks(task) == plain_hooks
    assert all(p.grad is None for _, p in task.named_parameters())

    new = done.model
    assert isinstance(new, CausalLM)
    assert done.method == method
    assert done.removal_level == METHODS.get(method).removal_level
    beside = done.removal_level in BESIDE
    inside = new.base.model.state_dict()
    if beside:
        assert new.base is not new, "what is beside the weights must be told apart from them"
        assert all(torch.equal(before[name], value) for name, value in inside.items()), "it says that weights stay"
    else:
        assert new.base is new
        assert any(not torch.equal(before[name], value) for name, value in inside.items())
    assert not new.model.training
    assert hooks(new) == plain_hooks
    if method in TRAINED:
        assert done.cost.forwards > 0
    assert done.cost.seconds > 0

    # Usable, savable, and loadable by the library alone: as what it is, or as the model inside it.
    pairs = [(row["prompt"], row["answer"]) for row in request_.forget.to_list()]  # type: ignore[union-attr]
    scores = new.score(pairs)
    assert all(np.isfinite(s.log_prob).all() for s in scores)
    assert len(new.generate([p for p, _ in pairs[:2]], [3, 3])) == 2
    done.save(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, dict(new.base.named_parameters())[n]) for n, p in plain.named_parameters())
    loaded = load_task(tmp_path / "out")
    assert type(loaded) is type(new)
    np.testing.assert_allclose(loaded.score(pairs)[0].log_prob, scores[0].log_prob, atol=1e-5)
    if beside:
        card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "`from_pretrained` loads" in card, "the folder must say what loading it plainly gives"
        assert stated_level(tmp_path / "out") == stated_level(loaded) == done.removal_level
        with pytest.raises(BadInput, match="of which this would load a part"):
            CausalLM.load(tmp_path / "out")


@pytest.mark.parametrize("method", LANGUAGE)
def test_the_same_seed_gives_the_same_weights(make_task: MakeTask, request_: DeletionRequest, method: str) -> None:
    runs = [state(unlearn(make_task(), request_, method, settings=quick(method, seed=s)).model) for s in (1, 1, 2)]  # type: ignore[arg-type]
    assert all(torch.equal(runs[0][name], value) for name, value in runs[1].items())
    if method in TRAINED:
        assert any(not torch.equal(runs[0][name], value) for name, value in runs[2].items())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", IN_PLACE)
def test_with_adapters_only_linear_layers_change(
    make_task: MakeTask, request_: DeletionRequest, method: str, family: str
) -> None:
    task = make_task(family)
    settings = quick(method, **{"lora.rank": 2})
    start = start_of(method, task, settings)
    before, names = state(start), set(state(task))
    new = unlearn(task, request_, method, settings=settings).model
    assert set(new.model.state_dict()) == names, "what comes out is a plain model"
    changed = {n for n, v in new.model.state_dict().items() if not torch.equal(before[n], v)}
    assert changed
    assert all(n.endswith("weight") and before[n].dim() == 2 and ("layers." in n or ".h." in n) for n in changed)
    for name in changed:
        assert torch.linalg.matrix_rank(new.model.state_dict()[name] - before[name], rtol=1e-4) <= 2
    assert all(p.requires_grad for _, p in new.named_parameters())


@pytest.mark.parametrize("method", IN_PLACE)
def test_confined_to_a_selection_nothing_else_moves(
    make_task: MakeTask, request_: DeletionRequest, method: str
) -> None:
    task = make_task()
    settings = quick(method, **{"select.by": "random", "select.share": 0.3, "weight_decay": 0.2, "seed": 5})
    start = start_of(method, task, settings)
    new = unlearn(task, request_, method, settings=settings).model
    mask = Random(RandomConfig(share=0.3)).build(start, request_, 5)
    before, after = state(start), state(new)
    assert all(not (before[name] != after[name])[~part].any() for name, part in mask.items() if part is not None)  # type: ignore[index]
    assert any(not torch.equal(before[name], after[name]) for name in mask)
    assert all(p.requires_grad for _, p in new.named_parameters())


@pytest.mark.parametrize("method", LANGUAGE)
def test_what_it_needs_is_asked_for_before_any_compute(
    task: CausalLM, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    for name in ("copy", "fresh", "encode", "statistics", "score"):
        monkeypatch.setattr(CausalLM, name, explode)
    needed = METHODS.get(method)().required()
    for missing in needed:
        sets = {role: examples for role, examples in request_.sets().items() if role != missing}
        with pytest.raises(BadInput, match=rf"method {method}: needs a {missing} set.*--{missing}"):
            unlearn(task, DeletionRequest(**sets), method)
    monkeypatch.setattr(CausalLM, "kind", "image_classifier_of_no_kind")
    with pytest.raises(BadInput, match=f"method {method}: does not serve image_classifier_of_no_kind"):
        unlearn(task, request_, method)


@pytest.mark.parametrize("method", LANGUAGE)
def test_it_runs_with_no_more_than_it_needs(task: CausalLM, request_: DeletionRequest, method: str) -> None:
    needed = METHODS.get(method)().required()
    alone = DeletionRequest(request_.forget, **{role: getattr(request_, role) for role in needed})
    assert unlearn(task, alone, method, settings=quick(method)).model is not task


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_is(name: str) -> None:
    method = METHODS.get(name)
    assert method.__doc__
    assert method.id == name
    assert method.title[0].islower() or method.title.split()[0].isupper() or method.title[0].isupper()
    assert not method.title.endswith(".")
    assert method.paper
    assert method.tasks
    assert set(method.needs) <= {"retain", "holdout"}
    assert set(method.needs) <= set(method().required())
    for key, field in method.Config.model_fields.items():
        assert field.description, f"{name}.{key} says nothing"
        assert key not in TrainSettings.model_fields, f"{name}.{key} hides a setting of training"
    settle(method, {})  # its own defaults are valid


@pytest.mark.parametrize("name", ALL)
def test_it_has_a_file_of_its_own_and_never_sees_an_audit(name: str) -> None:
    module = importlib.import_module(METHODS.get(name).__module__)
    assert module.__name__.rpartition(".")[2] == name
    tree = ast.parse(inspect.getsource(module))
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any("audits" in one for one in imported)
    here = Path(__file__).parent / module.__name__.split(".")[2] / f"test_{name}.py"
    assert here.is_file(), f"give it {here.name}"


@pytest.mark.parametrize("name", ALL)
def test_unknown_settings_are_met_with_near_names(name: str) -> None:
    known = [*METHODS.get(name).Config.model_fields, "learning_rate"]
    for key in known:
        with pytest.raises(BadInput, match=rf"{key}x.*did you mean .*{key}"):
            settle(METHODS.get(name), {f"{key}x": 1})


def test_there_are_the_methods_of_this_release() -> None:
    assert {"retrain", "finetune", "gradient_ascent", "grad_diff", "npo", "simnpo"} <= set(ALL)
    assert all(issubclass(METHODS.get(name), Method) for name in ALL)
