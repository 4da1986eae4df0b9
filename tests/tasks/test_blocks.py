"""The blocks of every family: found, read, and no more of them run than needed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from expunge.errors import BadInput, UnsupportedModel
from expunge.tasks.blocks import Operations, decoder_blocks, feed_forward_outputs, final_norm, last_feed_forward
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import collate

PAIRS = [
    ("Where was Tomas born?", "In Velburg."),
    ("Who?", "Mirela Ostrander repairs clocks in Harrow Bay."),
    ("", "Tomas moved."),
]
LAYERS = 3


def expected(task: CausalLM, positions: Any, layer: int) -> torch.Tensor:
    """The library's own hidden states at the rows."""
    batch = collate(task.encoder.encode(PAIRS), task.encoder.pad_id, task.device, positions)
    output = task.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
    hidden = output.hidden_states[layer + 1]
    return hidden.reshape(-1, hidden.shape[-1])[batch.rows]


@pytest.fixture(params=["llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox"])
def deep(request: pytest.FixtureRequest, tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model(request.param, vocab=384, layers=LAYERS)[0], tiny_tokenizer)


@pytest.mark.parametrize("positions", ["answer", "label", "attended", "all"])
def test_they_give_out_what_the_library_calls_hidden_states(deep: CausalLM, positions: Any) -> None:
    encoded = deep.encoder.encode(PAIRS)
    assert len(decoder_blocks(deep.model)) == LAYERS
    found = deep.hidden_states(encoded, [0, 1], positions=positions)
    assert set(found) == {0, 1}
    for layer, rows in found.items():
        torch.testing.assert_close(rows, expected(deep, positions, layer), atol=1e-5, rtol=1e-5)
    # The library puts the last block's output through the final norm; undone here by asking in front of it.
    seen = []
    handle = decoder_blocks(deep.model)[-1].register_forward_hook(lambda _, __, o: seen.append(o))
    whole = deep.hidden_states(encoded, [2], positions=positions, upto=False)
    handle.remove()
    last = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    batch = collate(encoded, deep.encoder.pad_id, deep.device, positions)
    assert torch.equal(whole[2], last.reshape(-1, last.shape[-1])[batch.rows])
    torch.testing.assert_close(whole[2], deep.hidden_states(encoded, [2], positions=positions)[2])


def test_nothing_above_the_deepest_is_run(deep: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("was run")

    encoded = deep.encoder.encode(PAIRS)
    blocks = decoder_blocks(deep.model)
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in deep.model.modules())
    monkeypatch.setattr(blocks[2], "forward", explode)
    monkeypatch.setattr(deep.model.get_output_embeddings(), "forward", explode)
    stats = deep.statistics(encoded, blocks=[1, 0], logits=False)
    assert stats.logits.shape == (len(stats.targets), 0)
    assert stats.blocks[1].shape[0] == stats.blocks[0].shape[0] == len(stats.targets)
    with pytest.raises(AssertionError, match="was run"):
        deep.hidden_states(encoded, [0], upto=False)
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in deep.model.modules())
    assert after == before


def test_gradients_are_those_of_the_whole_forward(deep: CausalLM) -> None:
    encoded = deep.encoder.encode(PAIRS)
    deep.hidden_states(encoded, [1])[1].square().sum().backward()
    ours = {n: p.grad.clone() for n, p in deep.named_parameters() if p.grad is not None}
    deep.model.zero_grad()
    expected(deep, "answer", 1).square().sum().backward()
    theirs = {n: p.grad for n, p in deep.named_parameters() if p.grad is not None}
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-4, rtol=1e-3, msg=name)


def test_adapters_are_looked_through(deep: CausalLM) -> None:
    encoded = deep.encoder.encode(PAIRS)
    plain = decoder_blocks(deep.model)
    deep.wrap_lora(2, 4.0, 0.0)
    assert decoder_blocks(deep.model) is plain
    with torch.no_grad():
        for name, parameter in deep.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    torch.testing.assert_close(deep.hidden_states(encoded, [0])[0], expected(deep, "answer", 0), atol=1e-5, rtol=1e-5)
    assert not any("lora" in name for name in feed_forward_outputs(deep.model, 0))


def test_block_outputs_come_beside_logits_and_split_with_them(deep: CausalLM) -> None:
    encoded = deep.encoder.encode(PAIRS)
    plain, both = deep.statistics(encoded), deep.statistics(encoded, blocks=[1])
    assert torch.equal(plain.logits, both.logits)
    assert not plain.blocks
    first, second = both.split([1, 2])
    assert torch.equal(torch.cat([first.blocks[1], second.blocks[1]]), both.blocks[1])
    assert len(first.blocks[1]) == int(both.counts[0])


# ---- the last feed-forward part ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapters", [False, True])
def test_the_last_feed_forward_part_at_the_rows_alone_changes_nothing(deep: CausalLM, adapters: bool) -> None:
    if adapters:
        deep.wrap_lora(2, 4.0, 0.0)
        with torch.no_grad():
            for name, parameter in deep.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
    encoded = deep.encoder.encode(PAIRS)
    found, spent = [], []
    for rows_only in (False, True):
        deep.model.zero_grad()
        before = deep.cost.flops
        stats = deep.statistics(encoded, hidden=True, blocks=[LAYERS - 1], rows_only=rows_only)
        stats.nll.sum().backward()
        assert stats.hidden is not None
        gradients = {n: p.grad.clone() for n, p in deep.named_parameters() if p.grad is not None}
        found.append((stats.logits.detach(), stats.hidden.detach(), stats.blocks[LAYERS - 1].detach(), gradients))
        spent.append(deep.cost.flops - before)
    assert spent[1] < spent[0]
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in deep.model.modules())


def test_only_the_rows_reach_it_and_other_calls_are_left_alone(deep: CausalLM) -> None:
    last = last_feed_forward(deep.model)
    assert last is not None
    assert any(last is child for child in decoder_blocks(deep.model)[-1].children())
    encoded, seen = deep.encoder.encode(PAIRS), []
    padded = len(PAIRS) * max(map(len, encoded.tokens))
    handle = next(last.children()).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    rows = len(deep.statistics(encoded, rows_only=True).targets)
    deep.statistics(encoded)
    deep.statistics(encoded, positions="all", rows_only=True)
    handle.remove()
    assert rows in seen
    assert set(seen[-2:]) == {padded}


class Mixing(nn.Module):
    """A feed-forward part that looks at the position before."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(hidden + hidden.roll(1, dims=1))
        return out


def test_one_that_mixes_positions_is_found_out_and_run_whole(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384, layers=LAYERS)[0], tiny_tokenizer)
    block = decoder_blocks(task.model)[-1]
    block.mlp = Mixing(block.mlp)
    encoded = task.encoder.encode(PAIRS)
    assert last_feed_forward(task.model) is block.mlp
    torch.testing.assert_close(
        task.statistics(encoded, rows_only=True).logits, task.statistics(encoded).logits, atol=0, rtol=0
    )


def test_blocks_that_are_run_again_in_the_backward_pass_are_run_whole(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384, layers=LAYERS)[0], tiny_tokenizer)
    encoded, found = task.encoder.encode(PAIRS), []
    task.model.train()
    for again in (False, True):
        if again:
            task.model.gradient_checkpointing_enable()
        task.statistics(encoded, rows_only=True).nll.sum().backward()
        found.append({n: p.grad.clone() for n, p in task.named_parameters()})
        task.model.zero_grad()
    torch.testing.assert_close(*found)


def test_a_part_that_is_no_module_of_its_own_is_left_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384, layers=LAYERS)[0], tiny_tokenizer)
    decoder_blocks(task.model)[-1].other = copy.deepcopy(decoder_blocks(task.model)[0].mlp)
    assert last_feed_forward(task.model) is None
    encoded = task.encoder.encode(PAIRS)
    assert torch.equal(task.statistics(encoded, rows_only=True).logits, task.statistics(encoded).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("trained", ["all", "none", "down"])
def test_only_what_is_run_is_counted(tiny_model: Any, tiny_tokenizer: Any, family: str, trained: str) -> None:
    task = CausalLM(tiny_model(family, vocab=384, hidden=64, layers=4)[0], tiny_tokenizer)
    task.model.set_attn_implementation("eager")  # the counter does not see the attention kernel of the CPU
    encoded = task.encoder.encode(PAIRS)
    if trained == "down":
        task.model.requires_grad_(False)
        for parameter in feed_forward_outputs(task.model, 2).values():
            parameter.requires_grad_(True)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trained != "none"):
        loss = task.hidden_states(encoded, [2])[2].square().sum()
        if trained != "none":
            loss.backward()
    counted = counter.get_total_flops()
    assert task.cost.flops == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "mixtral"])
def test_operations_add_up(tiny_model: Any, family: str) -> None:
    operations = Operations.of(tiny_model(family, vocab=384, layers=4)[0])
    whole = operations.forward(10, 5, 3)
    below = operations.forward(10, 5, 3, depth=4)
    assert whole == pytest.approx(below + 2 * operations.head * 3 + 2 * operations.rest * 10)
    assert operations.forward(10, 5, 3, depth=1) == pytest.approx(below / 4)
    assert operations.rest == 0


def test_the_down_projection_of_every_family_is_known(deep: CausalLM) -> None:
    for parameter in feed_forward_outputs(deep.model, 1).values():
        assert 32 in parameter.shape
        assert 64 in parameter.shape or 128 in parameter.shape


class Odd(nn.Module):
    """As a model, with module lists of its own."""

    def __init__(self, config: Any, **stacks: int):
        super().__init__()
        self.config = config
        for name, size in stacks.items():
            self.add_module(name, nn.ModuleList([nn.Linear(2, 2) for _ in range(size)]))


def test_a_stack_that_cannot_be_told_is_refused_with_what_was_looked_for(tiny_model: Any) -> None:
    config = tiny_model("llama", layers=3)[0].config
    with pytest.raises(UnsupportedModel, match=r"no stack of num_hidden_layers = 3 .* module lists are: cells of 4"):
        decoder_blocks(Odd(config, cells=4))
    with pytest.raises(UnsupportedModel, match=r"Odd: several stacks .*h of 3, layers of 3"):
        decoder_blocks(Odd(config, h=3, layers=3))
    with pytest.raises(UnsupportedModel, match=r"module lists are: none"):
        decoder_blocks(Odd(config))
    found = Odd(config, layers=3, adapters=3, more=2)
    assert decoder_blocks(found) is found.layers
    with pytest.raises(UnsupportedModel, match=r"no down projection found in block 0; its weights are: weight, bias"):
        feed_forward_outputs(found, 0)


def test_layers_that_are_not_there_are_refused(deep: CausalLM) -> None:
    encoded = deep.encoder.encode(PAIRS)
    for layer in (-1, 3):
        with pytest.raises(BadInput, match=rf"layer: {layer} is not there -> give one from 0 to 2"):
            deep.hidden_states(encoded, [0, layer])
    with pytest.raises(BadInput, match="at least one"):
        deep.hidden_states(encoded, [])


def test_the_final_norm_of_every_family_is_what_the_head_reads(every_tiny_model: Any) -> None:
    model, _ = every_tiny_model
    kept: list[torch.Tensor] = []
    norm = final_norm(model)
    handles = [
        norm.register_forward_hook(lambda _, __, out: kept.append(out)),
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: kept.append(args[0])),
    ]
    with torch.no_grad():
        model(torch.arange(3, 9)[None])
    for handle in handles:
        handle.remove()
    assert len(kept) == 2
    assert torch.equal(kept[0], kept[1])


def test_a_model_without_a_final_norm_is_refused(tiny_model: Any) -> None:
    model, _ = tiny_model("llama")
    model.model.norm = torch.nn.Identity()
    with pytest.raises(UnsupportedModel, match=r"no norm found.*embed_tokens, layers, norm"):
        final_norm(model)
