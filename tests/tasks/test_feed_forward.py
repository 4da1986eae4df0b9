"""The value vectors of every family: found, the right way round, writable, and what they do to the stream."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from expunge.errors import BadInput, UnsupportedModel
from expunge.tasks.blocks import decoder_blocks
from expunge.tasks.feed_forward import Place, ValueMatrix, locate_matrix, value_matrices, vectors_at


def carried(matrix: ValueMatrix, model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the model once; return the carrier's output and its gradient-free input."""
    kept: dict[str, Any] = {}
    handle = matrix.carrier.register_forward_hook(
        lambda _, args, out: kept.update(args=args, out=(out[0] if isinstance(out, tuple) else out).detach().clone())
    )
    try:
        with torch.no_grad():
            model(torch.arange(3, 15)[None])
    finally:
        handle.remove()
    return kept["args"][0], kept["out"].reshape(-1, kept["out"].shape[-1])


def test_every_family_has_one_vector_per_unit(every_tiny_model: tuple[PreTrainedModel, str]) -> None:
    model, name = every_tiny_model
    matrices = value_matrices(model)
    experts = 4 if name.startswith("mixtral") else 1
    units = 128 if name.startswith("gpt2") else 64
    assert [(m.layer, tuple(m.vectors.shape)) for m in matrices] == [
        (layer, (units, 32)) for layer in range(2) for _ in range(experts)
    ]
    assert all(m.alone == (experts == 1) for m in matrices)
    assert all(m.parameter in dict(model.named_parameters()) for m in matrices)


def test_a_vector_is_what_its_unit_writes(every_tiny_model: tuple[PreTrainedModel, str]) -> None:
    """Moving vector j by delta moves the layer's output along delta only, and for some token at all."""
    model, _ = every_tiny_model
    delta = torch.randn(32, generator=torch.Generator().manual_seed(0))
    moved = 0
    for matrix in [m for m in value_matrices(model) if m.layer == 0]:
        _, before = carried(matrix, model)
        with torch.no_grad():
            matrix.vectors[5] += delta
        _, after = carried(matrix, model)
        change = after - before
        along = (change @ delta)[:, None] * delta / delta.square().sum()
        torch.testing.assert_close(change, along, atol=1e-4, rtol=0)
        moved += int(change.abs().max() > 0)
    assert moved


def test_the_activation_is_the_factor_of_a_plain_layer(tiny_model: Any) -> None:
    for family in ("llama", "gpt2", "gpt_neox", "olmo2", "gemma2", "qwen2"):
        model, _ = tiny_model(family)
        matrix = value_matrices(model)[1]
        inputs, before = carried(matrix, model)
        with torch.no_grad():
            matrix.vectors[7] += 1.0
        _, after = carried(matrix, model)
        expected = inputs.reshape(-1, inputs.shape[-1])[:, 7:8].expand(-1, 32)
        torch.testing.assert_close(after - before, expected, atol=1e-4, rtol=1e-4)


def test_a_norm_behind_the_layer_scales_what_is_written(tiny_model: Any) -> None:
    for family, added in (("gemma2", 1.0), ("olmo2", 0.0)):
        model, _ = tiny_model(family)
        norm = decoder_blocks(model)[0].post_feedforward_layernorm
        with torch.no_grad():
            norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
        matrix = value_matrices(model)[0]
        expected = matrix.vectors * (norm.weight + added)
        torch.testing.assert_close(matrix.written(), expected.detach(), atol=1e-4, rtol=1e-4)
    plain = value_matrices(tiny_model("llama")[0])[0]
    assert plain.gain is None
    torch.testing.assert_close(plain.written(torch.tensor([3])), plain.vectors[3:4])


def test_square_matrices_lie_as_their_layer_says(tiny_model: Any) -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.arange(1024.0).reshape(32, 32))

    for module, rows in ((Conv1D(), True), (nn.Linear(32, 32, bias=False), False)):
        model, _ = tiny_model("llama")
        for block in decoder_blocks(model):
            block.mlp.down_proj = module
        vector = value_matrices(model)[0].vectors[2]
        assert torch.equal(vector, module.weight[2] if rows else module.weight[:, 2])


def test_other_names_can_be_given(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    for block in decoder_blocks(model):
        block.mlp.out = block.mlp.down_proj
        del block.mlp.down_proj
    with pytest.raises(UnsupportedModel, match=r"called down_proj, c_proj.*mlp\.gate_proj.*mlp\.out.*modules="):
        value_matrices(model)
    assert len(value_matrices(model, "mlp.out")) == 2
    assert len(value_matrices(model, "*.out")) == 2
    with pytest.raises(UnsupportedModel, match=r"called 'mlp\.outt'"):
        value_matrices(model, "mlp.outt")


def test_separate_experts_and_a_shared_one_are_told_apart(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    for block in decoder_blocks(model):
        block.mlp.experts = nn.ModuleList(nn.ModuleDict({"w2": nn.Linear(64, 32)}) for _ in range(3))
    names = [m.name for m in value_matrices(model) if m.layer == 1]
    assert names == ["mlp.down_proj", "mlp.experts.0.w2", "mlp.experts.1.w2", "mlp.experts.2.w2"]
    matrices = value_matrices(model)
    place = Place(1, 3, "mlp.experts.2.w2")
    torch.testing.assert_close(vectors_at(matrices, [place])[0], model.model.layers[1].mlp.experts[2].w2.weight[:, 3])
    assert locate_matrix(matrices, place).place(3) == place


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place(9, 0), "layer 9 has no value vectors.*layers 0, 1 have"),
        (Place(0, 64), "unit 64 does not exist.*units 0 to 63"),
        (Place(0, -1), "unit -1 does not exist"),
        (Place(0, 0, "attn"), "'attn' is no matrix of layer 0.*mlp.down_proj"),
    ],
)
def test_places_that_do_not_exist_are_named(tiny_model: Any, place: Place, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        locate_matrix(value_matrices(tiny_model("llama")[0]), place)


def test_no_places_give_no_vectors(tiny_model: Any) -> None:
    assert vectors_at(value_matrices(tiny_model("llama")[0]), []).shape == (0, 32)
    assert str(Place(3, 5)) == "layer 3, unit 5"
    assert str(Place(3, 5, "mlp.experts.down_proj[1]")) == "layer 3, unit 5 of mlp.experts.down_proj[1]"
