"""What is remembered of the model before unlearning equals asking that model again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training.objective import Objective, Term, kl_to_reference, nll
from expunge.training.reference import ReferenceModel

Encode = Callable[..., Encoded]


def rows(positions: Any = "answer") -> Objective:
    nlls = Term("n", ("forget",), lambda s: s.sequence_nll - s.reference_nll, "example_mean", reference="sequence_nll")
    kl = Term("kl", ("retain",), kl_to_reference, "row_mean", reference="rows", positions=positions)
    return Objective((nlls, kl))


def ruin(task: CausalLM) -> None:
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@pytest.mark.parametrize("positions", ["answer", "attended", "all"])
def test_remembered_numbers_are_those_of_the_model_itself(
    every_tiny_model: Any, tiny_tokenizer: Any, positions: Any
) -> None:
    task = CausalLM(every_tiny_model[0], tiny_tokenizer)
    frozen = task.copy()
    pairs = [
        ("Where was Tomas born?", "In Velburg."),
        ("Who?", "Mirela Ostrander repairs clocks."),
        ("", "Tomas moved."),
    ]
    streams: dict[Any, Encoded] = {s: task.encoder.encode(pairs, ["a", "b", "c"]) for s in ("forget", "retain")}
    reference = ReferenceModel(task, rows(positions), streams, {s: [0, 1, 2] for s in streams})
    ruin(task)
    batch = streams["retain"].take([2, 0])
    for stream, where in (("forget", "answer"), ("retain", positions)):
        stats = task.statistics(batch, positions=where)
        reference.attach(stats, stream, batch)  # type: ignore[arg-type]
        with torch.no_grad():
            expected = frozen.statistics(batch, positions=where)
        torch.testing.assert_close(stats.reference_nll, expected.sequence_nll, atol=1e-4, rtol=1e-4)
        if stream == "retain":
            assert stats.reference_logits is not None
            torch.testing.assert_close(stats.reference_logits(slice(None)), expected.logits, atol=1e-4, rtol=1e-4)
            part = stats.reference_logits(slice(1, 3))
            torch.testing.assert_close(part, expected.logits[1:3], atol=1e-4, rtol=1e-4)


def test_adapters_switched_off_are_the_model_before(task: CausalLM, encode: Encode) -> None:
    streams: dict[Any, Encoded] = {"forget": encode(3), "retain": encode(3, 100)}
    plain = task.copy()
    task.wrap_lora(4, 8.0, 0.5)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    for positions in ("answer", "all"):  # remembered, and live
        reference = ReferenceModel(task, rows(positions), streams, {s: [0, 1, 2] for s in streams})
        stats = task.statistics(streams["retain"], positions=positions)  # type: ignore[arg-type]
        reference.attach(stats, "retain", streams["retain"])
        with torch.no_grad():
            expected = plain.statistics(streams["retain"], positions=positions)  # type: ignore[arg-type]
        assert stats.reference_logits is not None
        torch.testing.assert_close(stats.reference_logits(slice(None)), expected.logits, atol=1e-4, rtol=1e-4)
        assert reference.live is (task if positions == "all" else None), "no second model is kept"


def test_nothing_is_computed_that_nobody_needs(task: CausalLM, encode: Encode) -> None:
    streams: dict[Any, Encoded] = {"forget": encode(6), "retain": encode(6, 100)}
    plain = Objective((Term("f", ("forget",), nll, "token_mean"), Term("r", ("retain",), nll, "token_mean")))
    ReferenceModel(task, plain, streams, {s: list(range(6)) for s in streams})
    assert task.cost.forwards == 0
    reference = ReferenceModel(task, rows(), streams, {"forget": [1, 4], "retain": [2]})
    assert task.cost.sequences == 3
    assert {name for name in reference.values if name.startswith("nll.forget")} == {"nll.forget.id1", "nll.forget.id4"}
    assert not any(p.requires_grad for p in reference.values.values())


def test_a_cache_is_read_only_for_the_run_that_it_is_of(task: CausalLM, encode: Encode, tmp_path: Path) -> None:
    streams: dict[Any, Encoded] = {"forget": encode(3), "retain": encode(3, 100)}
    used = {s: [0, 1, 2] for s in streams}
    file = tmp_path / "new" / "reference.safetensors"
    first = ReferenceModel(task, rows(), streams, used, file, "key")
    ruin(task)
    before = task.cost.forwards
    again = ReferenceModel(task, rows(), streams, used, file, "key")
    assert task.cost.forwards == before
    assert all(torch.equal(v, again.values[n]) for n, v in first.values.items())
    assert all(torch.equal(v, again.head[n]) for n, v in first.head.items())
    other = ReferenceModel(task, rows(), streams, used, file, "another model")
    assert task.cost.forwards > before
    assert any(not torch.equal(v, other.values[n]) for n, v in first.values.items())
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_damaged_cache_is_named(task: CausalLM, encode: Encode, tmp_path: Path) -> None:
    file = tmp_path / "reference.safetensors"
    file.write_bytes(b"\x08")
    streams: dict[Any, Encoded] = {"forget": encode(1), "retain": encode(1, 100)}
    with pytest.raises(BadInput, match=r"reference\.safetensors: is damaged"):
        ReferenceModel(task, rows(), streams, {s: [0] for s in streams}, file)


def test_a_head_that_cannot_be_replayed_falls_back_to_a_whole_model(
    task: CausalLM, encode: Encode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = task.head
    monkeypatch.setattr(task, "head", lambda hidden, weights: plain(hidden, weights) * 2)
    streams: dict[Any, Encoded] = {"forget": encode(2), "retain": encode(2, 100)}
    with caplog.at_level(logging.WARNING):
        reference = ReferenceModel(task, rows(), streams, {s: [0, 1] for s in streams})
    assert "keeping a copy of the whole model" in caplog.text
    frozen = task.copy()
    ruin(task)
    stats = task.statistics(streams["retain"])
    reference.attach(stats, "retain", streams["retain"])
    with torch.no_grad():
        expected = frozen.statistics(streams["retain"])
    assert stats.reference_logits is not None
    assert torch.equal(stats.reference_logits(slice(None)), expected.logits)


def block_terms(positions: Any = "answer") -> Objective:
    def away(stats: Any) -> torch.Tensor:
        return stats.per_example((stats.blocks[1] - stats.reference_blocks[1]).square().mean(-1))

    steer = Term("steer", ("forget",), lambda s: s.blocks[0].sum(), "example_mean", blocks=(0,))
    keep = Term("keep", ("retain",), away, "example_mean", reference="rows", positions=positions, blocks=(1,))
    return Objective((steer, keep))


@pytest.mark.parametrize("positions", ["answer", "label", "attended", "all"])
@pytest.mark.parametrize("lora", [False, True])
def test_block_outputs_are_remembered_too(task: CausalLM, encode: Encode, positions: Any, lora: bool) -> None:
    streams: dict[Any, Encoded] = {"forget": encode(3), "retain": encode(3, 100)}
    frozen = task.copy()
    if lora:
        task.wrap_lora(2, 4.0, 0.0)
    reference = ReferenceModel(task, block_terms(positions), streams, {s: [0, 1, 2] for s in streams})
    assert not any(name.startswith(("nll", "block1.forget")) for name in reference.values)
    ruin(task)
    if lora:
        task.model.base_model.model.load_state_dict(
            {n.replace(".weight", ".base_layer.weight") if "proj" in n else n: v for n, v in state(frozen).items()},
            strict=False,
        )
    batch = streams["retain"].take([2, 0])
    stats = task.statistics(batch, positions=positions, blocks=(1,), logits=False)
    reference.attach(stats, "retain", batch)
    expected = frozen.hidden_states(batch, [1], positions=positions)[1]
    torch.testing.assert_close(stats.reference_blocks[1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(stats.blocks[1], expected, atol=1e-2)
    assert not stats.reference_blocks[1].requires_grad


def state(task: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}
