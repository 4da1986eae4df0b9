from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from expunge.audits.general.weight_distance import WeightDistance, layer_map, relative, squared_distances
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.errors import ExpungeError
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_one_changed_weight_by_hand(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    """All of one matrix is scaled by 1.5: its module moved by 0.5 of its norm, everything else by 0."""
    original, moved = make_lm(0), make_lm(0)
    name = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        moved.model.get_submodule(name).weight.mul_(1.5)
    finding = run_one(WeightDistance(), Observations({"unlearned": moved, "original": original}, request_))
    table, by_layer = finding.tables
    assert by_layer.columns[0] == "layer"
    column = list(by_layer.columns).index("mlp.down_proj")
    assert [row[column] for row in by_layer.rows] == ["0.0000", "0.5000"]
    assert table.rows[0] == (name, pytest.approx(0.5, rel=1e-5))
    assert table.rows[1][1] == 0.0
    norms = {n: float(p.detach().double().norm()) for n, p in original.named_parameters()}
    expected = 0.5 * norms[f"{name}.weight"] / math.sqrt(sum(v**2 for v in norms.values()))
    estimates = finding.estimates["unlearned"]
    assert estimates["relative_distance"].value == pytest.approx(expected, rel=1e-5)
    assert estimates["tensors_changed"].value == pytest.approx(1 / len(norms))


def test_the_same_model_did_not_move(make_lm: Callable[..., CausalLM]) -> None:
    assert {d for d, _ in squared_distances(make_lm(0), make_lm(0)).values()} == {0.0}


def test_adapters_count_as_what_they_do(make_lm: Callable[..., CausalLM]) -> None:
    adapted = make_lm(0)
    adapted.wrap_lora(rank=2, alpha=4, dropout=0.0)
    assert {d for d, _ in squared_distances(adapted, make_lm(0)).values()} == {0.0}  # B starts at zero
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name and "layers.0.mlp.up_proj" in name:
                weight.fill_(0.01)
    moved = {name for name, (d, _) in squared_distances(adapted, make_lm(0)).items() if d > 0}
    assert moved == {"model.layers.0.mlp.up_proj.weight"}
    assert any("lora_" in name for name, _ in adapted.named_parameters()), "the model itself must stay adapted"


def test_another_architecture_is_an_error(make_lm: Callable[..., CausalLM]) -> None:
    with pytest.raises(ExpungeError, match="not the same architecture"):
        squared_distances(make_lm(0), make_lm(0, "gpt2"))


def test_models_of_another_architecture_have_no_distance(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    models = {"unlearned": make_lm(0), "original": make_lm(0), "oracle": make_lm(0, "gpt2")}
    finding = run_one(WeightDistance(), Observations(models, request_))
    assert finding.estimates["unlearned"]["relative_distance"].value == 0.0
    other = finding.estimates["oracle"]["relative_distance"]
    assert other.value is None
    assert "not the same architecture" in other.note
    models["unlearned"] = models.pop("oracle")
    finding = run_one(WeightDistance(), Observations(models, request_))
    assert finding.status == "no data"
    assert "not the same architecture" in finding.note


def test_relative_at_the_edges() -> None:
    assert relative(0.0, 0.0) == 0.0
    assert relative(1.0, 0.0) == math.inf
    assert relative(1.0, 4.0) == 0.5


def test_the_map_has_a_row_per_layer_and_holes_where_a_layer_lacks_a_module() -> None:
    modules = {"h.10.mlp.out": 0.5, "h.2.mlp.out": 0.25, "h.2.attn": math.inf, "norm": 9.0}
    (table,) = layer_map(modules, "unlearned")
    assert table.columns == ("layer", "mlp.out", "attn")
    assert table.rows == [(2, "0.2500", "from zero"), (10, "0.5000", "")]
    assert layer_map({"norm": 1.0}, "unlearned") == []
    (two,) = layer_map({"encoder.0.x": 0.1, "decoder.0.x": 0.2}, "unlearned")
    assert [row[0] for row in two.rows] == ["decoder 0", "encoder 0"]
