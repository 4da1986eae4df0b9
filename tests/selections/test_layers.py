from __future__ import annotations

from typing import Any

import pytest

from expunge.selections.layers import last_layers, layers_of


@pytest.mark.parametrize("name", ["resnet", "vit", "module", "table", "bert"])
def test_every_parameter_belongs_to_one_layer_and_the_head_is_last(tiny_predictor: Any, name: str) -> None:
    task = tiny_predictor(name)
    layers = layers_of(task)
    own = [id(p) for _, module in layers for p in module.parameters(recurse=False)]
    assert sorted(own) == sorted(id(p) for _, p in task.named_parameters())
    assert layers[-1][1] is task.head_module()
    assert set(last_layers(task, 1)) == set(task.head_parameters())
    assert set(last_layers(task, 10_000)) == {n for n, _ in task.named_parameters()}


def test_the_output_embedding_of_a_language_model_is_its_head(make_task: Any) -> None:
    assert list(last_layers(make_task("llama"), 1)) == ["lm_head.weight"]
    assert list(last_layers(make_task("llama", tied=True), 1)) == ["model.embed_tokens.weight"]
