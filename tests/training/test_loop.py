"""The loop against plain autograd; invariances, guards, stopping, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.errors import BadInput, MissingExtra
from expunge.tasks import base
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import Encoded
from expunge.training import dealing, loop
from expunge.training.loop import TrainResult, train
from expunge.training.objective import Objective, Term, kl_to_reference, negative_nll, nll
from expunge.training.plan import Plan
from expunge.training.probe import Probe
from expunge.training.settings import TrainSettings

Weights = Callable[[CausalLM], dict[str, Tensor]]
Encode = Callable[..., Encoded]
Streams = Mapping[Any, Encoded]
PLAIN = {"batch_size": 7, "warmup": 0.0, "schedule": "constant", "weight_decay": 0.0}


def npo(stats: Any) -> Tensor:
    return -F.logsigmoid(0.5 * (stats.sequence_nll - stats.reference_nll))


FORGET = {
    "token_mean": Term("f", ("forget",), negative_nll, "token_mean"),
    "sequence_mean": Term("f", ("forget",), negative_nll, "sequence_mean"),
    "sequence_sum": Term("f", ("forget",), negative_nll, "sequence_sum", 0.1),
    "example_mean": Term("f", ("forget",), npo, "example_mean", reference="sequence_nll"),
}
RETAIN = {
    "nll": Term("r", ("retain",), nll, "token_mean", 0.7),
    "kl": Term("r", ("retain",), kl_to_reference, "row_mean", 0.7, reference="rows"),
    "kl attended": Term("r", ("retain",), kl_to_reference, "row_mean", 0.7, reference="rows", positions="attended"),
    "kl all": Term("r", ("retain",), kl_to_reference, "row_mean", 0.7, reference="rows", positions="all"),
}
GA = Objective((FORGET["token_mean"],))
BOTH = Objective((FORGET["example_mean"], RETAIN["kl"]))


class Descent(torch.optim.SGD):
    """Gradient descent in AdamW's place, so that weights are a linear function of gradients."""

    def __init__(self, parameters: Any, lr: float, **_: Any):
        super().__init__(parameters, lr=lr)


def descend(task: CausalLM, objective: Objective, streams: Streams, **options: Any) -> dict[str, Tensor]:
    """How the weights move in two plain steps; the second is away from the reference model."""
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Descent)
        chosen = {**PLAIN, "epochs": 2, "max_steps": 2, "clip_norm": None, "learning_rate": 0.5, **options}
        train(task, objective, streams, TrainSettings(**chosen))
    return {n: p.detach() - before[n] for n, p in task.named_parameters()}


def plain_rows(model: Any, encoded: Encoded, i: int, kept: str) -> tuple[Tensor, Tensor]:
    """(logits, tokens) of one plain forward without padding; answer rows or all real rows."""
    tokens, start = torch.tensor(encoded.tokens[i]), encoded.starts[i]
    logits = model(tokens[None]).logits[0]
    return (logits[start - 1 : -1] if kept == "answer" else logits), tokens[start:]


def by_definition(task: CausalLM, forget: str, retain: str, streams: Streams) -> dict[str, Tensor]:
    """The same two steps from the definitions, one example per forward, one graph, a live reference."""
    plan = Plan(streams, "forget", batch_size=7, epochs=2, max_steps=2, seed=0)
    model, frozen = task.model, copy.deepcopy(task.model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for number in range(2):
        chosen = plan.step(number).examples
        losses, references = [], []
        for i in chosen["forget"]:
            logits, tokens = plain_rows(model, streams["forget"], i, "answer")
            losses.append(F.cross_entropy(logits, tokens, reduction="none"))
            with torch.no_grad():
                logits, tokens = plain_rows(frozen, streams["forget"], i, "answer")
            references.append(F.cross_entropy(logits, tokens, reduction="sum"))
        loss = {
            "token_mean": lambda losses=losses: -torch.cat(losses).mean(),
            "sequence_mean": lambda losses=losses: -torch.stack([x.mean() for x in losses]).mean(),
            "sequence_sum": lambda losses=losses: -0.1 * torch.stack([x.sum() for x in losses]).mean(),
            "example_mean": lambda losses=losses, references=references: torch.stack(
                [-F.logsigmoid(0.5 * (x.sum() - r)) for x, r in zip(losses, references, strict=True)]
            ).mean(),
        }[forget]()
        if retain == "kl all":
            # The reference implementation: one padded batch, flattened, "batchmean" over B * T rows.
            width = max(streams["retain"].length(i) for i in chosen["retain"])
            ids, mask = torch.zeros(7, width, dtype=torch.long), torch.zeros(7, width, dtype=torch.long)
            for b, i in enumerate(chosen["retain"]):
                ids[b, : streams["retain"].length(i)] = torch.tensor(streams["retain"].tokens[i])
                mask[b, : streams["retain"].length(i)] = 1
            with torch.no_grad():
                old = frozen(input_ids=ids, attention_mask=mask).logits.log_softmax(-1).flatten(0, 1)
            new = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1).flatten(0, 1)
            kept = F.kl_div(new, old, reduction="batchmean", log_target=True)
        elif retain == "nll":
            pairs = [plain_rows(model, streams["retain"], i, "answer") for i in chosen["retain"]]
            kept = torch.cat([F.cross_entropy(*pair, reduction="none") for pair in pairs]).mean()
        else:
            rows = []
            for i in chosen["retain"]:
                where = "answer" if retain == "kl" else "real"
                with torch.no_grad():
                    old = plain_rows(frozen, streams["retain"], i, where)[0].log_softmax(-1)
                new = plain_rows(model, streams["retain"], i, where)[0].log_softmax(-1)
                rows.append(F.kl_div(new, old, reduction="none", log_target=True).sum(-1))
            kept = torch.cat(rows).mean()
        (loss + 0.7 * kept).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad
                parameter.grad = None
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 3e-6) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=atol, rtol=5e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert max(float(v.abs().max()) for v in expected.values()) > 1e-3


# ---- gradients and invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("retain", RETAIN)
@pytest.mark.parametrize("forget", FORGET)
def test_steps_follow_the_definition(task: CausalLM, encode: Encode, forget: str, retain: str) -> None:
    streams = {"forget": encode(7), "retain": encode(20, 100)}
    expected = by_definition(task.copy(), forget, retain, streams)
    assert_close(descend(task, Objective((FORGET[forget], RETAIN[retain])), streams), expected)


@pytest.mark.parametrize("retain", ["nll", "kl", "kl attended"])
@pytest.mark.parametrize("forget", FORGET)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(micro=st.one_of(st.none(), st.integers(1, 7)), share=st.sampled_from(["always", "never"]))
def test_how_a_step_is_split_changes_nothing(
    task: CausalLM, encode: Encode, forget: str, retain: str, micro: int | None, share: str
) -> None:
    streams, objective = {"forget": encode(7), "retain": encode(20, 100)}, Objective((FORGET[forget], RETAIN[retain]))
    whole = descend(task.copy(), objective, streams, share_forward="never")
    assert_close(descend(task.copy(), objective, streams, micro_batch_size=micro, share_forward=share), whole)


@pytest.mark.parametrize("overhead", [1, 20])
@pytest.mark.parametrize("retain", ["nll", "kl"])
@pytest.mark.parametrize("forget", FORGET)
def test_streams_that_share_micro_batches_by_length_change_nothing(
    task: CausalLM, encode: Encode, monkeypatch: pytest.MonkeyPatch, forget: str, retain: str, overhead: int
) -> None:
    weights = sum(p.numel() for p in task.model.parameters())
    monkeypatch.setattr(base, "CALL_FLOPS", 6 * weights * overhead)
    streams, objective = {"forget": encode(7), "retain": encode(20, 100)}, Objective((FORGET[forget], RETAIN[retain]))
    apart = descend(task.copy(), objective, streams, share_forward="never")
    pooled = task.copy()
    assert_close(descend(pooled, objective, streams), apart)
    never = task.copy()
    descend(never, objective, streams, share_forward="never")
    assert pooled.cost.sequences == never.cost.sequences
    assert pooled.cost.padded_tokens < never.cost.padded_tokens or pooled.cost.forwards < never.cost.forwards


def test_streams_coupled_by_one_term_may_be_split_too(task: CausalLM, encode: Encode) -> None:
    gap = Term("gap", ("forget", "retain"), lambda f, r: (r.mean_nll - f.mean_nll).square() * 100, "example_mean")
    streams = {"forget": encode(7), "retain": encode(20, 100)}
    whole = descend(task.copy(), Objective((gap,)), streams)
    assert_close(descend(task.copy(), Objective((gap,)), streams, micro_batch_size=2), whole)


def away(stats: Any) -> Tensor:
    return stats.per_example((stats.blocks[0] - 2.0).square().mean(-1)) / stats.counts


def drifted(stats: Any) -> Tensor:
    return stats.per_example((stats.blocks[1] - stats.reference_blocks[1]).square().mean(-1)) / stats.counts


STEER = Term("steer", ("forget",), away, "example_mean", 20.0, blocks=(0,))
HOLD = Term("hold", ("retain",), drifted, "example_mean", 50.0, reference="rows", blocks=(1,))


def test_terms_on_block_outputs_run_no_further_and_follow_the_definition(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(7), "retain": encode(20, 100)}
    model, frozen, before = copy.deepcopy(task.model), task.model, dict(task.copy().named_parameters())
    plan = Plan(streams, "forget", batch_size=7, epochs=2, max_steps=2, seed=0)
    for number in range(2):
        steer, hold = [], []
        for i in plan.step(number).examples["forget"]:
            tokens, start = torch.tensor(streams["forget"].tokens[i]), streams["forget"].starts[i]
            hidden = model(tokens[None], output_hidden_states=True).hidden_states[1][0, start - 1 : -1]
            steer.append((hidden - 2.0).square().mean())
        for i in plan.step(number).examples["retain"]:
            tokens, start = torch.tensor(streams["retain"].tokens[i]), streams["retain"].starts[i]
            both = [second_block(m, tokens)[start - 1 : -1] for m in (model, frozen)]
            hold.append((both[0] - both[1].detach()).square().mean())
        (20 * torch.stack(steer).mean() + 50 * torch.stack(hold).mean()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.5 * parameter.grad if parameter.grad is not None else 0
                parameter.grad = None
    expected = {n: p.detach() - before[n].detach() for n, p in model.named_parameters()}
    for options in ({}, {"micro_batch_size": 2}, {"share_forward": "always"}):
        ours = task.copy()
        assert_close(descend(ours, Objective((STEER, HOLD)), streams, **options), expected)
    assert all(torch.count_nonzero(v) == 0 for n, v in expected.items() if "norm" in n and "layers" not in n)


def test_weights_that_no_term_depends_on_are_refused(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(4), "retain": encode(4, 100)}
    above = {"model.layers.1.mlp.up_proj.weight": None}
    with pytest.raises(BadInput, match="reaches none of the weights that may move"):
        train(task, Objective((STEER,)), streams, TrainSettings(**PLAIN), mask=above)
    before = task.copy()
    train(task, Objective((STEER, RETAIN["nll"])), streams, TrainSettings(**{**PLAIN, "max_steps": 2}), mask=above)
    assert not torch.equal(*(m.model.layers[1].mlp.up_proj.weight for m in (before.model, task.model)))


def second_block(model: Any, tokens: Tensor) -> Tensor:
    """What the last block gives out, in front of the final norm."""
    seen: list[Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens[None])
    handle.remove()
    return seen[0][0]


def test_a_stream_read_in_both_ways_is_run_once(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(4), "retain": encode(4, 100)}
    kept = Term("nll", ("retain",), nll, "token_mean")
    ours = task.copy()
    train(ours, Objective((STEER, HOLD, kept)), streams, TrainSettings(**{**PLAIN, "max_steps": 1, "batch_size": 4}))
    assert ours.cost.backwards == 2


def test_adapters_switched_off_are_the_reference(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(7), "retain": encode(20, 100)}
    found = {}
    for positions in ("kl", "kl all"):
        # The second keeps the reference live: adapters off on the fly. With one example per forward both are the same.
        term = Term("r", ("retain",), kl_to_reference, "row_mean", 1.0, "rows", RETAIN[positions].positions)
        rows = Objective((FORGET["example_mean"], term))
        options = {"lora": {"rank": 4}, "micro_batch_size": 1}
        found[positions] = train(task.copy(), rows, streams, TrainSettings(**PLAIN, epochs=2, **options)).history
    for record in found.values():
        assert record[0]["loss/r"] == pytest.approx(0, abs=1e-6)
        assert record[0]["loss/f"] == pytest.approx(math.log(2), abs=1e-4)


def test_shared_forwards_are_fewer(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(8), "retain": encode(8, 100)}
    objective = Objective((FORGET["token_mean"], RETAIN["nll"]))
    counts = {}
    for share in ("always", "never"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dealing, "SHARED_PADDING", 10.0)
            done = train(task.copy(), objective, streams, TrainSettings(batch_size=4, epochs=1, share_forward=share))  # type: ignore[arg-type]
        counts[share] = done.cost.forwards
    assert counts == {"always": 2, "never": 4}


def test_the_same_seed_gives_the_same_bytes(task: CausalLM, encode: Encode, weights: Weights) -> None:
    streams = {"forget": encode(9), "retain": encode(20, 100)}

    def run(seed: int) -> dict[str, Tensor]:
        model = task.copy()
        model.model.config.attention_dropout = 0.2
        for layer in model.model.model.layers:
            layer.self_attn.attention_dropout = 0.2
        torch.manual_seed(int.from_bytes(str(seed).encode(), "big") + len(torch.get_rng_state()))
        train(model, BOTH, streams, TrainSettings(batch_size=4, epochs=2, seed=seed, learning_rate=1e-2))
        torch.rand(3)  # what else happens in the process does not matter
        return weights(model)

    one = run(3)
    assert all(torch.equal(v, run(3)[n]) for n, v in one.items())
    assert any(not torch.equal(v, run(4)[n]) for n, v in one.items())


def test_the_order_of_the_examples_changes_nothing(task: CausalLM, encode: Encode, weights: Weights) -> None:
    forget, retain = encode(9), encode(20, 100)
    shuffled = {"forget": forget.take([*range(8, -1, -1)]), "retain": retain.take([*range(10, 20), *range(10)])}
    twin = task.copy()
    options = TrainSettings(batch_size=4, epochs=2)
    train(task, BOTH, {"forget": forget, "retain": retain}, options)
    train(twin, BOTH, shuffled, options)
    assert all(torch.equal(v, weights(twin)[n]) for n, v in weights(task).items())


def test_random_state_outside_is_left_alone(task: CausalLM, encode: Encode) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    train(task, GA, {"forget": encode(4)}, TrainSettings(epochs=1, lora={"rank": 2}))  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forget_only_objective_reads_no_retain_and_no_reference(task: CausalLM, encode: Encode) -> None:
    class Untouchable(Encoded):
        def take(self, indices: Any) -> Encoded:
            raise AssertionError("a stream of weight 0 was read")

    def explode(_: Any) -> Tensor:
        raise AssertionError("a term of weight 0 was evaluated")

    off = Term("off", ("retain",), explode, "token_mean", weight=0.0, reference="rows")
    streams = {"forget": encode(4), "retain": Untouchable(["x"], [], [])}
    done = train(task, Objective((FORGET["token_mean"], off)), streams, TrainSettings(epochs=1, batch_size=4))
    assert done.cost.forwards == 1
    assert "loss/off" not in done.history[0]


def test_bf16_stays_close_to_fp32(task: CausalLM, encode: Encode) -> None:
    streams = {"forget": encode(8), "retain": encode(8, 100)}
    runs = [
        train(task.copy(), BOTH, streams, TrainSettings(**PLAIN, epochs=3, learning_rate=1e-3, precision=p))  # type: ignore[arg-type]
        for p in ("fp32", "bf16")
    ]
    for one, other in zip(*(run.history for run in runs), strict=True):
        assert one["loss/f"] == pytest.approx(other["loss/f"], rel=0.05)
    assert runs[1].history[0]["loss/r"] == pytest.approx(0, abs=1e-5), "model and reference run in one precision"
    assert {p.dtype for p in task.model.parameters()} == {torch.float32}


# ---- optimiser and schedule ------------------------------------------------------------------------------------


def test_the_schedule_is_what_was_asked_for(task: CausalLM, encode: Encode) -> None:
    def rates(**options: Any) -> list[float]:
        chosen = TrainSettings(batch_size=2, epochs=3, learning_rate=1.0, max_steps=6, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim, "AdamW", lambda p, lr, **_: Descent(p, 0.0))
            return [r["learning_rate"] for r in train(task.copy(), GA, {"forget": encode(4)}, chosen).history]

    # The stand-in ignores the rate; what is recorded is what it would have been.
    assert rates(warmup=0.0, schedule="constant", clip_norm=1e-30) == [1.0] * 6
    assert rates(clip_norm=1e-30) == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25])


def test_clipping_sees_trained_weights_only(task: CausalLM, encode: Encode) -> None:
    for name, parameter in task.named_parameters():
        parameter.requires_grad_("layers.1" in name)
    before = {n: p.detach().clone() for n, p in task.named_parameters()}
    seen: list[float] = []

    class Watch(Descent):
        def step(self, *_: Any) -> None:  # type: ignore[override]
            grads = [p.grad for group in self.param_groups for p in group["params"]]
            seen.append(float(torch.stack([g.norm() for g in grads]).norm()))
            super().step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", Watch)
        done = train(
            task, GA, {"forget": encode(8)}, TrainSettings(epochs=1, batch_size=4, clip_norm=0.01, learning_rate=1.0)
        )
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)
    assert all(record["gradient_norm"] > 0.01 for record in done.history), "the norm before clipping is recorded"
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, before[name]) == ("layers.1" not in name)


# ---- guards ----------------------------------------------------------------------------------------------------


def broken_at(step: int) -> Term:
    calls = iter(range(1, 1000))

    def values(stats: Any) -> Tensor:
        return negative_nll(stats) * (float("nan") if next(calls) == step else 1.0)

    return Term("forget_ascent", ("forget",), values, "token_mean")


def test_nan_stops_and_says_where_and_what_to_turn(task: CausalLM, encode: Encode, weights: Weights) -> None:
    done = train(task, Objective((broken_at(3),)), {"forget": encode(8)}, TrainSettings(batch_size=4, epochs=4))
    assert done.diverged
    assert "step 3" in done.stop_reason
    assert "learning_rate" in done.stop_reason
    assert (done.steps, done.kept_step, len(done.history)) == (2, 2, 2)
    assert all(torch.isfinite(v).all() for v in weights(task).values())


def test_after_nan_the_last_checkpoint_that_worked_is_kept(
    task: CausalLM, encode: Encode, weights: Weights, tmp_path: Path
) -> None:
    streams, options = {"forget": encode(8)}, {"batch_size": 4, "epochs": 4, "checkpoint_every": 1}
    good = task.copy()
    full = TrainSettings(**options, schedule="constant", warmup=0.0)
    done = train(task, Objective((broken_at(4),)), streams, full, folder=tmp_path)
    # The loss of step 4 is that of the weights after step 3: they are the broken ones.
    assert (done.steps, done.kept_step, done.diverged) == (3, 2, True)
    train(good, GA, streams, full.model_copy(update={"max_steps": 2}))
    assert all(torch.equal(v, weights(good)[n]) for n, v in weights(task).items())


def test_without_any_step_the_model_is_as_it_was(task: CausalLM, encode: Encode, weights: Weights) -> None:
    before = weights(task)
    done = train(task, Objective((broken_at(1),)), {"forget": encode(4)}, TrainSettings(epochs=1))
    assert (done.steps, done.kept_step, done.diverged) == (0, 0, True)
    assert all(torch.equal(v, before[n]) for n, v in weights(task).items())


def test_a_huge_learning_rate_ends_with_a_reason(task: CausalLM, encode: Encode) -> None:
    chosen = TrainSettings(batch_size=4, epochs=20, learning_rate=1e30, warmup=0.0)
    done = train(task, GA, {"forget": encode(8)}, chosen)
    assert done.diverged
    assert done.steps < 40
    assert "there is no checkpoint to go back to" in done.stop_reason


@pytest.fixture
def learned(task: CausalLM, encode: Encode) -> CausalLM:
    """A model that knows forget and retain answers better than chance."""
    everything = {"retain": encode(7) + encode(14, 100)}
    train(
        task,
        Objective((RETAIN["nll"],), anchor="retain"),
        everything,
        TrainSettings(**PLAIN, learning_rate=1e-2, epochs=8),
    )
    return task


def probed(
    task: CausalLM, encode: Encode, stop: dict[str, Any], objective: Objective = GA, **options: Any
) -> tuple[TrainResult, Probe]:
    chosen = TrainSettings(**{**PLAIN, "learning_rate": 3e-3, "epochs": 30, "stop": stop, **options})
    streams = {"forget": encode(7), "retain": encode(14, 100), "holdout": encode(7, 200)}
    probe = Probe(streams, chosen.stop, 0, None, 384)
    return train(task, objective, streams, chosen, probe=probe), probe


def test_collapse_stops_and_goes_back(learned: CausalLM, encode: Encode, weights: Weights) -> None:
    task, start = learned, weights(learned)
    done, probe = probed(task, encode, {"every": 4})
    assert done.diverged
    assert done.stop_reason.startswith("collapsed: retained answers are less likely than random")
    assert done.probes[-1].retain_nll > math.log(384)  # type: ignore[operator]
    assert 0 <= done.kept_step < done.steps
    kept = next(p for p in done.probes if p.step == done.kept_step)
    again = Probe(probe.sets, probe.settings, 0, None, 384).look(task, done.kept_step)
    assert again.retain_nll == pytest.approx(kept.retain_nll)
    assert kept.step > 0 or all(torch.equal(v, start[n]) for n, v in weights(task).items())


def test_training_stops_at_a_number(learned: CausalLM, encode: Encode) -> None:
    done, _ = probed(learned, encode, {"every": 1, "forget_target": 4.5}, learning_rate=1e-3)
    assert "forget target reached" in done.stop_reason
    assert not done.diverged
    assert done.probes[-1].forget_nll >= 4.5 > done.probes[-2].forget_nll  # type: ignore[operator]
    assert done.steps == done.kept_step == done.probes[-1].step < 30
    assert done.probe_target == 4.5


def test_training_stops_at_the_level_of_unseen_data(learned: CausalLM, encode: Encode) -> None:
    done, _ = probed(learned, encode, {"every": 1, "forget_target": "holdout"})
    assert done.probe_target == done.probes[0].holdout_nll
    assert done.probes[-1].forget_nll >= done.probe_target  # type: ignore[operator]


def test_training_stops_at_the_retain_ceiling(learned: CausalLM, encode: Encode) -> None:
    done, _ = probed(learned, encode, {"every": 1, "retain_ceiling": 0.05})
    assert done.stop_reason.startswith("retain ceiling")
    rise = [p.retain_nll - done.probes[0].retain_nll for p in done.probes]  # type: ignore[operator]
    assert rise[-1] > 0.05
    assert max(rise[:-1]) <= 0.05


def test_at_the_ceiling_the_last_model_below_it_is_kept(learned: CausalLM, encode: Encode) -> None:
    done, probe = probed(learned, encode, {"every": 1, "retain_ceiling": 0.05})
    assert done.kept_step == done.steps - 1
    again = Probe(probe.sets, probe.settings, 0, None, 384).look(learned, 0)
    assert again.retain_nll == pytest.approx(done.probes[-2].retain_nll)


def test_a_level_that_is_reached_already_costs_no_step(learned: CausalLM, encode: Encode, weights: Weights) -> None:
    start = weights(learned)
    done, _ = probed(learned, encode, {"every": 1, "forget_target": 0.001})
    assert (done.steps, done.kept_step) == (0, 0)
    assert "forget target reached" in done.stop_reason
    assert all(torch.equal(v, start[n]) for n, v in weights(learned).items())


def test_the_closest_probe_within_the_ceiling_is_kept(learned: CausalLM, encode: Encode) -> None:
    done, probe = probed(learned, encode, {"every": 2, "forget_target": 5.5, "keep": "closest"})
    closest = min(done.probes, key=lambda p: abs(p.forget_nll - 5.5))  # type: ignore[operator]
    assert done.kept_step == closest.step
    again = Probe(probe.sets, probe.settings, 0, None, 384).look(learned, 0)
    assert again.forget_nll == pytest.approx(closest.forget_nll)


def test_probes_leave_training_alone(learned: CausalLM, encode: Encode, weights: Weights) -> None:
    twin = learned.copy()
    done, _ = probed(learned, encode, {"every": 1}, BOTH, epochs=3, learning_rate=1e-4)
    plain, _ = probed(twin, encode, {"every": 0}, BOTH, epochs=3, learning_rate=1e-4)
    assert all(torch.equal(v, weights(twin)[n]) for n, v in weights(learned).items())
    assert [p.step for p in done.probes] == [0, 1, 2, 3]
    assert done.cost.forwards == plain.cost.forwards
    assert done.cost.flops == plain.cost.flops
    assert done.probe_cost.forwards > 0
    assert done.probe_cost.peak_bytes > 0
    assert plain.probe_cost.forwards == 0
    assert not learned.model.training


# ---- input, log, trackers --------------------------------------------------------------------------------------


def test_everything_missing_is_named_at_once(task: CausalLM, encode: Encode) -> None:
    with pytest.raises(BadInput) as caught:
        train(task, BOTH, {"forget": encode(0)}, TrainSettings(trackers=("tensorboard",)))
    assert [p.where for p in caught.value.problems] == ["forget set", "retain set", "trackers"]
    with pytest.raises(BadInput, match="no term with a weight"):
        train(
            task, Objective((Term("f", ("forget",), nll, "token_mean", 0.0),)), {"forget": encode(2)}, TrainSettings()
        )
    with pytest.raises(BadInput, match="needs several processes"):
        train(task, GA, {"forget": encode(2)}, TrainSettings(sharding="fully_shard"))


def test_the_log_holds_one_line_per_step_and_probe(task: CausalLM, encode: Encode, tmp_path: Path) -> None:
    chosen = TrainSettings(batch_size=4, epochs=2, stop={"every": 2})  # type: ignore[arg-type]
    streams = {"forget": encode(8), "retain": encode(8, 100)}
    seen: list[tuple[int, int, float]] = []
    for _ in range(2):  # a second run in the same folder starts a new log
        probe = Probe(streams, chosen.stop, 0)
        seen.clear()
        done = train(
            task.copy(), BOTH, streams, chosen, folder=tmp_path, probe=probe,
            progress=lambda n, total, values: seen.append((n, total, values["loss"])),
        )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], "probe" in line) for line in lines] == [
        (0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True),
    ]  # fmt: skip
    assert [line for line in lines if "probe" not in line] == done.history
    assert seen == [(r["step"], 4, r["loss"]) for r in done.history]
    first = done.history[0]
    assert first["loss"] == pytest.approx(first["loss/f"] + first["loss/r"])


def test_tensorboard_gets_the_numbers(task: CausalLM, encode: Encode, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = TrainSettings(batch_size=4, epochs=2, trackers=("tensorboard",))
    done = train(task, GA, {"forget": encode(8)}, chosen, folder=tmp_path)
    (events,) = [
        f for f in (tmp_path / "trackers").rglob("events.*") if "hparams" not in str(f) and f.parent.name == "expunge"
    ]
    reader = EventAccumulator(str(events.parent))
    reader.Reload()
    assert [e.value for e in reader.Scalars("loss")] == pytest.approx([r["loss"] for r in done.history])


def test_a_tracker_that_is_not_installed_is_named(
    task: CausalLM, encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"wandb is not installed.*expunge\[wandb\]"):
        train(task, GA, {"forget": encode(2)}, TrainSettings(trackers=("wandb",)), folder=tmp_path)


# ---- turns -------------------------------------------------------------------------------------------------------


def in_turns() -> Objective:
    forget = Term("f", ("forget",), negative_nll, "token_mean", hidden=True)
    retain = Term("r", ("retain",), kl_to_reference, "row_mean", reference="rows", turn=1)
    return Objective((forget, retain), turns=(0.5, 1.0))


def test_turns_see_each_others_weights_and_have_optimisers_of_their_own(task: CausalLM, encode: Encode) -> None:
    streams: Streams = {"forget": encode(14), "retain": encode(30, 100)}
    model, frozen = copy.deepcopy(task.model).eval(), copy.deepcopy(task.model).eval()
    settings = TrainSettings(**{**PLAIN, "epochs": 2, "clip_norm": None, "learning_rate": 1e-3})
    done = train(task, in_turns(), streams, settings)
    plan = Plan(streams, "forget", batch_size=7, epochs=2, max_steps=None, seed=0)
    adams = [torch.optim.Adam(model.parameters(), lr=rate) for rate in (5e-4, 1e-3)]
    for number in range(plan.total):
        chosen = plan.step(number).examples
        pairs = [plain_rows(model, streams["forget"], i, "answer") for i in chosen["forget"]]
        loss = -torch.cat([F.cross_entropy(*pair, reduction="none") for pair in pairs]).mean()
        loss.backward()
        adams[0].step()
        model.zero_grad()
        rows = []
        for i in chosen["retain"]:
            old = plain_rows(frozen, streams["retain"], i, "answer")[0].detach().log_softmax(-1)
            new = plain_rows(model, streams["retain"], i, "answer")[0].log_softmax(-1)
            rows.append(F.kl_div(new, old, reduction="none", log_target=True).sum(-1))
        kept = torch.cat(rows).mean()
        kept.backward()
        adams[1].step()
        model.zero_grad()
        assert done.history[number]["loss/f"] == pytest.approx(loss.item(), abs=1e-4)
        assert done.history[number]["loss/r"] == pytest.approx(kept.item(), abs=1e-4)
    assert plan.total == 4
    for (name, found), expected in zip(task.named_parameters(), model.parameters(), strict=True):
        # Where a gradient is all but zero, Adam's step depends on its rounding.
        assert (found - expected).abs().mean() < 2e-5, name


def test_a_run_in_turns_goes_on_where_it_was_interrupted(
    task: CausalLM, encode: Encode, weights: Weights, tmp_path: Path
) -> None:
    streams: Streams = {"forget": encode(14), "retain": encode(30, 100)}
    settings = TrainSettings(**{**PLAIN, "epochs": 4, "learning_rate": 1e-3, "checkpoint_every": 1})
    once, twice = task.copy(), task.copy()
    train(once, in_turns(), streams, settings, folder=tmp_path / "once")

    def interrupt(step: int, *_: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(twice, in_turns(), streams, settings, folder=tmp_path / "twice", progress=interrupt)
    twice = task.copy()
    done = train(twice, in_turns(), streams, settings, folder=tmp_path / "twice")
    assert done.resumed_from == 4
    assert all(torch.equal(value, weights(twice)[name]) for name, value in weights(once).items())


def test_training_in_evaluation_mode_has_no_dropout(tiny_model: Any, tiny_tokenizer: Any, encode: Encode) -> None:
    seen: list[bool] = []
    task = CausalLM(tiny_model("gpt2", vocab=384)[0], tiny_tokenizer)
    objective = Objective((FORGET["token_mean"],), evaluation=True)
    settings = TrainSettings(**{**PLAIN, "max_steps": 2})
    task.model.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    train(task, objective, {"forget": encode(7)}, settings)
    assert seen
    assert not any(seen)
