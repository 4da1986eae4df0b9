"""RMU: by hand, by the reference's shapes, what is trained, and how little of the model is run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.language.rmu import RMU, RMUConfig, control_vector, rmu_loss, rmu_reference_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.blocks import decoder_blocks
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import collate
from expunge.training.padded import Padded, objective_value

MakeTask = Callable[..., CausalLM]


def test_two_examples_by_hand() -> None:
    # Rows of example 0: squared distances (1 + 0) / 2 and (9 + 1) / 2; of example 1: (4 + 4) / 2.
    hidden = torch.tensor([[1.0, 1.0], [3.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    target, example, counts = torch.tensor([0.0, 1.0]).double(), torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    assert rmu_loss(hidden, target, example, counts).tolist() == [(0.5 + 5.0) / 2, 4.0]
    assert rmu_loss(hidden, hidden, example, counts).tolist() == [0.0, 0.0]


@given(st.integers(0, 10**6))
def test_the_gradient_points_from_the_target(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    target = torch.randn(3, generator=generator, dtype=torch.float64)
    example, counts = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([3, 2])
    (gradient,) = torch.autograd.grad(rmu_loss(hidden, target, example, counts).mean(), hidden)
    expected = 2 * (hidden.detach() - target) / 3 / counts[example][:, None] / 2
    torch.testing.assert_close(gradient, expected)


def broadcast(hidden: torch.Tensor, target: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The reference in its own shapes: (B,) by (B, 1)."""
    mask = labels != -100
    squared = F.mse_loss(hidden, target.expand_as(hidden), reduction="none")
    summed = (squared * mask[:, :, None]).mean(dim=2).sum(dim=1)
    grid = summed / mask.sum(dim=-1, keepdim=True)
    assert grid.shape == (len(labels), len(labels))
    return grid.mean()


@given(st.integers(0, 10**6), st.integers(1, 4))
def test_parity_divides_every_sum_by_every_length(seed: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, 6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    target = control_vector(4, 3.0, seed).double()
    labels = torch.full((batch, 6), -100)
    for b in range(batch):
        labels[b, 2 + b % 2 : 4 + (seed + b) % 3] = 7
    both = [f(hidden, target, labels) for f in (rmu_reference_loss, broadcast)]
    torch.testing.assert_close(both[0], both[1])
    gradients = [torch.autograd.grad(loss, hidden)[0] for loss in both]
    torch.testing.assert_close(gradients[0], gradients[1])
    if batch == 1:
        rows = labels[0] != -100
        defined = rmu_loss(hidden[0, rows], target, torch.zeros(int(rows.sum()), dtype=torch.long), rows.sum()[None])
        torch.testing.assert_close(both[0], defined[0])


@pytest.mark.parametrize("positions", ["answer", "attended", "all"])
def test_rows_that_are_steered_and_held(positions: str) -> None:
    """Per example the mean over its rows, all dimensions: by loops over a padded batch."""
    generator = torch.Generator().manual_seed(0)
    now, then = (torch.randn(2, 5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.tensor([[-100, -100, 3, 1, 4], [-100, 2, 0, -100, -100]])
    attention = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    rows = {"answer": [[1, 2, 3], [0, 1]], "attended": [range(5), range(3)], "all": [range(5), range(5)]}[positions]
    batch = Padded(now, labels, attention, blocks={7: now}, reference_blocks={7: then})
    method, _ = settle(RMU, {"positions": positions, "steering": 5.0, "retain_weight": 3.0})
    found = objective_value(method.objective(), {"forget": batch, "retain": batch})  # type: ignore[attr-defined]
    target = control_vector(3, 5.0, 0).double()

    def mean(wanted: torch.Tensor) -> float:
        squared = [[((now[b, t] - wanted[b, t]) ** 2).mean() for t in rows[b]] for b in range(2)]
        return float(sum(sum(part) / len(part) for part in squared) / 2)

    assert float(found) == pytest.approx(mean(target.expand_as(now)) + 3 * mean(then))
    if positions == "all":
        # What the authors compute: one mean over every number of the block's output.
        whole = F.mse_loss(now, target.expand_as(now)) + 3 * F.mse_loss(now, then)
        assert float(found) == pytest.approx(float(whole))


def test_parity_has_rows_of_its_own() -> None:
    with pytest.raises(BadInput, match=r"^rmu: parity has rows of its own -> leave out parity or positions$"):
        settle(RMU, {"parity": True, "positions": "all"})


def test_the_control_vector_follows_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    one, again, other = control_vector(64, 6.5, 3), control_vector(64, 6.5, 3), control_vector(64, 6.5, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.norm() == pytest.approx(6.5)
    assert (one >= 0).all(), "as the authors draw it: uniform on [0, 1), not around 0"


@pytest.mark.parametrize(("parity", "positions"), [(False, "answer"), (False, "attended"), (True, "answer")])
def test_one_step_of_the_loop_is_the_pure_function(
    make_task: MakeTask, request_: DeletionRequest, parity: bool, positions: str
) -> None:
    task = make_task(layers=4)
    encoded = task.encode(request_.forget)
    batch = collate(encoded, 0, task.device)
    output = task.model(input_ids=batch.input_ids, output_hidden_states=True)
    hidden = output.hidden_states[2].detach()
    labels = torch.full(batch.input_ids.shape, -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        labels[b, start : len(tokens)] = torch.from_numpy(tokens[start:])
    target = control_vector(hidden.shape[-1], 5.0, 11)
    if parity:
        expected = broadcast(hidden, target, labels)
    else:
        shifted = F.pad(labels[:, 1:], (0, 1), value=-100) != -100
        if positions == "attended":
            lengths = torch.tensor([len(tokens) for tokens in encoded.tokens])
            shifted = torch.arange(labels.shape[1]) < lengths[:, None]
        expected = torch.stack([(hidden[b][m] - target).square().mean(-1).mean() for b, m in enumerate(shifted)]).mean()
    settings = {
        "layer": 1,
        "steering": 5.0,
        "parity": parity,
        "positions": positions,
        "seed": 11,
        "max_steps": 1,
        "batch_size": 6,
    }
    done = unlearn(task, request_, "rmu", settings=settings)
    assert done.training is not None
    first = done.training.history[0]
    assert first["loss/rmu"] == pytest.approx(float(expected), rel=1e-5)
    assert first["loss/retain_hidden"] == pytest.approx(0.0, abs=1e-9), "at first the model is its own reference"


def test_the_default_layer_is_the_seventh_or_the_middle() -> None:
    method = RMU(RMUConfig())
    assert [method.layer(blocks) for blocks in (1, 2, 6, 15, 16, 32, 80)] == [0, 0, 2, 7, 7, 7, 7]
    assert RMU(RMUConfig(layer=20)).layer(32) == 20
    assert settle(RMU, {})[0].required() == ("retain",)
    assert settle(RMU, {"retain": "none"})[0].required() == ()
    objective = settle(RMU, {"retain": "nll"})[0].objective()  # type: ignore[attr-defined]
    assert [objective.reads_logits(s) for s in objective.streams()] == [False, True]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mixtral"])
def test_only_the_named_matrices_train(make_task: MakeTask, request_: DeletionRequest, family: str) -> None:
    task = make_task(family, layers=6)
    before = dict(task.copy().named_parameters())
    settings = {"layer": 4, "max_steps": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup": 0.0}
    found = {}
    for name, more in (("default", {}), ("named", {"trained_layers": [1]}), ("all", {"trained": "all"})):
        new = unlearn(task, request_, "rmu", settings={**settings, **more}).model
        assert all(p.requires_grad for _, p in new.named_parameters())
        found[name] = {n for n, p in new.named_parameters() if not torch.equal(p, before[n])}
    out = {"llama": "mlp.down_proj.weight", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}
    down = out.get(family, "mlp.experts.down_proj")
    assert {n for n in found["default"] if down not in n} == set()
    assert {n.split(".")[2] for n in found["default"]} == {"2", "3", "4"}
    assert {n.split(".")[2] for n in found["named"]} == {"1"}
    stack = [n for n in found["all"] if "layers." in n or ".h." in n]
    assert {n.split(".")[2] for n in stack} == {"0", "1", "2", "3", "4"}, "no gradient reaches the blocks above"


def test_what_cannot_train_is_refused(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task(layers=3)
    with pytest.raises(BadInput, match=r"rmu: layer: 3 is not there: the model has 3 blocks -> give one from 0 to 2"):
        unlearn(task, request_, "rmu", settings={"layer": 3})
    with pytest.raises(BadInput, match=r"trained_layers: 2 does not come before the end of block 1"):
        unlearn(task, request_, "rmu", settings={"layer": 1, "trained_layers": [0, 2]})
    for block in decoder_blocks(task.model):
        block.mlp.odd = block.mlp.down_proj  # type: ignore[union-attr]
        del block.mlp.down_proj  # type: ignore[union-attr]
    alone = DeletionRequest(request_.forget)
    with pytest.raises(BadInput, match=r"needs a retain set[\s\S]*no down projection found in block 0"):
        unlearn(task, alone, "rmu")


def test_it_costs_the_blocks_up_to_the_layer_twice_and_no_head(tiny_model: Any, tiny_tokenizer: Any) -> None:
    """At layer k of L, a step is 2 (k + 1) / L of the blocks' operations of a plain step on one stream."""

    def same_length(first: int, count: int) -> Dataset:
        asked = [(f"Where was number {i} born?", f"In Velburg {i}.") for i in range(first, first + count)]
        rows = [{"prompt": prompt, "answer": answer} for prompt, answer in asked]
        return Dataset.from_list([{**row, "id": example_id(row)} for row in rows])

    layers, layer = 8, 2
    model = tiny_model("llama", vocab=384, hidden=64, layers=layers)[0]
    model.set_attn_implementation("eager")  # the counter does not see the attention kernel of the CPU
    task = CausalLM(model, tiny_tokenizer)
    request = DeletionRequest(same_length(11, 4), same_length(15, 1))  # one partner: its reference is always the same

    def operations(trained: str, steps: int) -> tuple[float, float]:
        """Operations by the counter and by our account; the reference is in both."""
        settings = {"layer": layer, "trained": trained, "max_steps": steps, "batch_size": 4, "epochs": 5}
        with FlopCounterMode(display=False) as counter:
            done = unlearn(task, request, "rmu", settings=settings)
        assert done.training is not None
        return float(counter.get_total_flops()), done.training.cost.flops

    encoded = task.encode(request.forget)
    (width,) = {len(tokens) for tokens in (encoded + task.encode(request.retain)).tokens}  # type: ignore[arg-type]
    plain = 3 * task.operations.forward(4 * width, width, 0, depth=layers)
    target = 2 * (layer + 1) / layers * plain
    for trained in ("all", "down_proj"):
        print(trained, operations(trained, 1), operations(trained, 3), target)
        (one, one_account), (three, three_account) = operations(trained, 1), operations(trained, 3)
        counted, account = (three - one) / 2, (three_account - one_account) / 2
        assert account == pytest.approx(counted, rel=0.05)
        assert counted <= 1.05 * target
        if trained == "all":
            assert counted == pytest.approx(target, rel=0.05)
        else:
            assert counted < 0.7 * target, "of the frozen weights no gradient is computed"


def test_forget_outputs_go_where_they_are_sent_and_retain_outputs_stay(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task(layers=4)
    settings = {
        "layer": 1, "steering": 8.0, "epochs": 80, "batch_size": 6, "learning_rate": 2e-2, "warmup": 0.0,
        "trained": "all", "seed": 5, "retain_weight": 4.0,
    }  # fmt: skip
    new = unlearn(task, request_, "rmu", settings=settings).model
    assert isinstance(new, CausalLM)
    target = control_vector(32, 8.0, 5)
    with torch.no_grad():
        forget, retain = (task.encode(e) for e in (request_.forget, request_.retain))  # type: ignore[arg-type]
        away = [(t.hidden_states(forget, [1])[1] - target).square().mean() for t in (task, new)]
        moved = (new.hidden_states(retain, [1])[1] - task.hidden_states(retain, [1])[1]).square().mean()
    assert away[1] < 0.7 * away[0]
    assert moved < 0.5 * (away[0] - away[1])
