"""Task vectors: arithmetic by hand, adapters, tied weights and integers, and the search for a strength."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.base import Run, settle
from expunge.methods.general.task_vector import TaskVector, negate_task_vector
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.training.loop import train
from expunge.training.probe import measure

MakeTask = Callable[..., CausalLM]
# Subtracting some of this raises both losses on a random model; much more of it leads anywhere.
GENTLE = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-3}
QUICK = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2}


def state(task: CausalLM) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.model.state_dict().items()}


def tuned_on_forget(task: CausalLM, request: DeletionRequest, **settings: Any) -> CausalLM:
    """What the method mirrors, made with the loop alone."""
    method, chosen = settle(TaskVector, {**QUICK, **settings})
    tuned = task.copy()
    train(tuned, method.objective(), {"forget": tuned.encode(request.forget)}, chosen)  # type: ignore[attr-defined]
    return tuned


# ---- the arithmetic ------------------------------------------------------------------------------------------------


def test_two_weights_by_hand_and_integers_stay() -> None:
    base = {"w": torch.tensor([1.0, -2.0]), "steps": torch.tensor([7])}
    tuned = {"w": torch.tensor([1.5, -2.0]), "steps": torch.tensor([9])}
    out = negate_task_vector(base, tuned, 3.0)
    assert out["w"].tolist() == [-0.5, -2.0]
    assert out["steps"].tolist() == [7]
    out["steps"][0] = 0
    assert base["steps"].tolist() == [7]
    # The reference code leaves such tensors out, and a strict load of its result fails.
    reference = negate_task_vector(base, tuned, 3.0, parity=True)
    assert reference.keys() == {"w"}
    assert reference["w"].tolist() == [-0.5, -2.0]


@given(st.integers(0, 10**6), st.floats(0, 8))
def test_laws_of_the_arithmetic(seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    start, end = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    base, tuned = {"w": start}, {"w": end}
    assert torch.equal(negate_task_vector(base, tuned, 0.0)["w"], start)
    assert torch.equal(negate_task_vector(base, base, strength)["w"], start)
    torch.testing.assert_close(negate_task_vector(base, tuned, -1.0)["w"], end)
    out = negate_task_vector(base, tuned, strength)
    # Both lie on one line through the original, on opposite sides of it.
    torch.testing.assert_close(out["w"] - start, -strength * (end - start))


def test_low_precision_is_rounded_once() -> None:
    base = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}
    tuned = {"w": torch.tensor([1.0078125], dtype=torch.bfloat16)}  # the next number up
    out = negate_task_vector(base, tuned, 1.3)
    assert out["w"].dtype == torch.bfloat16
    assert float(out["w"]) == float(torch.tensor(1 - 1.3 * 0.0078125).to(torch.bfloat16))


def test_nothing_is_dropped_or_broadcast() -> None:
    one, two = {"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)}
    with pytest.raises(ValueError, match=r"1 tensor.*b"):
        negate_task_vector(one, two, 1.0)
    with pytest.raises(ValueError, match=r"1 tensor.*b"):
        negate_task_vector(two, one, 1.0)
    with pytest.raises(ValueError, match=r"1 tensor.*a"):
        negate_task_vector({"a": torch.ones(2)}, {"a": torch.ones(1)}, 1.0)


@given(st.integers(0, 10**6), st.floats(0.1, 4))
def test_subtracting_a_low_rank_product_turns_the_sign_of_one_factor(seed: int, strength: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    up, down = torch.randn(5, 2, generator=generator).double(), torch.randn(2, 4, generator=generator).double()
    out = negate_task_vector({"w": weight}, {"w": weight + up @ down}, strength)["w"]
    torch.testing.assert_close(out, weight + (-strength * up) @ down)


# ---- on models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_the_result_mirrors_the_fine_tuned_model(
    make_task: MakeTask, request_: DeletionRequest, tied: bool, adapters: bool
) -> None:
    task = make_task("qwen2", tied=tied)
    more: dict[str, Any] = {"lora.rank": 2} if adapters else {}
    base, tuned = state(task), state(tuned_on_forget(task, request_, **more))
    done = unlearn(task, request_, "task_vector", settings={**QUICK, **more, "strength": 2.0})
    new = state(done.model)  # type: ignore[arg-type]
    assert set(new) == set(base)
    for name, value in new.items():
        torch.testing.assert_close(value, base[name] - 2 * (tuned[name] - base[name]), rtol=0, atol=1e-6)
    assert any(not torch.equal(new[name], base[name]) for name in base)
    head, embeddings = done.model.model.get_output_embeddings(), done.model.model.get_input_embeddings()
    assert (head.weight is embeddings.weight) == tied
    assert done.training is not None
    assert "2 times the task vector" in done.training.stop_reason


def test_a_trained_adapter_with_one_factor_negated_is_the_same_model(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task()
    settings = {**QUICK, "lora.rank": 2, "strength": 1.5}
    ours = state(unlearn(task, request_, "task_vector", settings=settings).model)  # type: ignore[arg-type]

    def turned(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
        other = task.copy()
        merge = other.merge_lora

        def turn_and_merge() -> None:
            for name, parameter in other.model.named_parameters():
                if "lora_B" in name and names:
                    parameter.data *= 1.5
                if any(part in name for part in names):
                    parameter.data.neg_()
            merge()

        other.merge_lora = turn_and_merge  # type: ignore[method-assign]
        method, chosen = settle(TaskVector, settings)
        train(other, method.objective(), {"forget": other.encode(request_.forget)}, chosen)  # type: ignore[attr-defined]
        return state(other)

    flipped, both = turned(("lora_B",)), turned(("lora_A", "lora_B"))
    base = state(task)
    for name, value in ours.items():
        torch.testing.assert_close(value, flipped[name], rtol=0, atol=1e-6)
        # Turning both factors learns the forget set instead.
        torch.testing.assert_close(both[name] - base[name], base[name] - value, rtol=0, atol=1e-6)


def test_it_forgets_what_it_learned_further(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    new = unlearn(task, request_, "task_vector", settings=GENTLE).model
    sets = {"forget": task.encode(request_.forget)}
    assert measure(new, sets)["forget"][0] > measure(task, sets)["forget"][0] + 0.1
    tuned = tuned_on_forget(task, request_, **GENTLE)
    assert measure(tuned, sets)["forget"][0] < measure(task, sets)["forget"][0]


def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_weights(
    make_task: MakeTask, request_: DeletionRequest, tmp_path: Path
) -> None:
    settings = {**QUICK, "max_steps": 4, "checkpoint_every": 2}
    whole = state(unlearn(make_task(), request_, "task_vector", settings=settings, folder=tmp_path / "a").model)  # type: ignore[arg-type]

    class Killed(Exception):
        pass

    def kill(done: int, total: int, values: Any) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        unlearn(make_task(), request_, "task_vector", settings=settings, folder=tmp_path / "b", progress=kill)
    again = unlearn(make_task(), request_, "task_vector", settings=settings, folder=tmp_path / "b")
    assert again.training is not None
    assert again.training.resumed_from == 2
    assert all(torch.equal(whole[name], value) for name, value in state(again.model).items())  # type: ignore[arg-type]


# ---- choosing a strength -------------------------------------------------------------------------------------------


def test_the_search_takes_the_largest_strength_whose_retain_loss_stays(
    make_task: MakeTask, request_: DeletionRequest
) -> None:
    task = make_task()
    sets = {"retain": task.encode(request_.retain), "forget": task.encode(request_.forget)}
    start = measure(task, sets)["retain"][0]
    seen = {}
    for strength in (0.25, 1.0, 3.0):
        new = unlearn(task, request_, "task_vector", settings={**GENTLE, "strength": strength}).model
        seen[strength] = measure(new, sets)["retain"][0]
    assert start < seen[0.25] < seen[1.0] < seen[3.0]
    between = (seen[1.0] + seen[3.0]) / 2 - start
    settings = {**GENTLE, "strengths": [40.0, 3.0, 0.25, 1.0], "retain_rise": between}
    done = unlearn(task, request_, "task_vector", settings=settings)
    search = done.config["search"]
    assert search["chosen"] == 1.0
    assert search["retain_ceiling"] == pytest.approx(start + between, rel=1e-5)
    tried = {t["strength"]: t["retain_nll"] for t in search["tried"]}
    assert tried == pytest.approx({0.0: start, **seen}, rel=1e-5), "40 lies beyond the first that is too much"
    fixed = unlearn(task, request_, "task_vector", settings={**GENTLE, "strength": 1.0})
    assert all(torch.equal(v, state(fixed.model)[n]) for n, v in state(done.model).items())  # type: ignore[arg-type]
    # Measuring is paid for apart from training.
    assert done.training is not None
    assert fixed.training is not None
    assert done.training.cost.forwards == fixed.training.cost.forwards
    assert done.cost.forwards == done.training.cost.forwards + done.training.probe_cost.forwards
    assert done.training.probe_cost.forwards >= 8
    assert done.training.probe_cost.peak_bytes > 0


def test_where_no_strength_is_gentle_enough_it_says_so(make_task: MakeTask, request_: DeletionRequest) -> None:
    settings = {**GENTLE, "strengths": [3.0, 1.0], "retain_rise": 1e-3}
    with pytest.raises(BadInput, match=r"strengths.*1 takes it from.*retain_rise"):
        unlearn(make_task(), request_, "task_vector", settings=settings)


def test_a_forget_target_chooses_among_the_strengths(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    settings = {**GENTLE, "strengths": [0.25, 0.5, 1.0], "retain_rise": 100.0}
    tried = unlearn(task, request_, "task_vector", settings=settings).config["search"]["tried"]
    middle = next(t for t in tried if t["strength"] == 0.5)
    stop = {"stop.every": 1, "stop.forget_target": middle["forget_nll"]}
    done = unlearn(task, request_, "task_vector", settings={**settings, **stop})
    assert done.config["search"]["chosen"] == 0.5
    assert done.training is not None
    assert done.training.steps == GENTLE["max_steps"], "the fine-tuning itself is not stopped"
    assert done.train is not None
    assert done.train["stop"]["every"] == 1
    ceiling = {"stop.every": 1, "stop.retain_ceiling": 1e-9}
    with pytest.raises(BadInput, match="strengths"):
        unlearn(task, request_, "task_vector", settings={**settings, **ceiling})


def test_rules_that_have_nothing_to_judge_are_refused_before_any_compute(
    make_task: MakeTask, request_: DeletionRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    rules = {"stop.every": 1, "stop.forget_target": 3.0, "stop.retain_ceiling": 0.1}

    def explode(*_: Any, **__: Any) -> None:
        raise AssertionError("something was computed")

    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "copy", explode)
        with pytest.raises(BadInput, match=r"(?s)stop.forget_target.*stop.retain_ceiling.*give strengths"):
            unlearn(task, request_, "task_vector", settings={**QUICK, **rules})
        alone = replace(request_, retain=None)
        with pytest.raises(BadInput, match="needs a retain set"):
            unlearn(task, alone, "task_vector", settings={**QUICK, "strengths": [1.0]})
    # Looking alone is no rule.
    assert unlearn(task, request_, "task_vector", settings={**QUICK, "stop.every": 1}).training is not None


def test_defaults_are_those_of_muse() -> None:
    method, chosen = settle(TaskVector, {})
    assert method.config.strength == 1.0
    assert (chosen.epochs, chosen.learning_rate, chosen.schedule, chosen.warmup) == (10, 1e-5, "constant", 0.0)
    assert method.required() == ()
    assert Run(train=chosen).train.lora is None


def test_parity_rounds_after_every_operation_and_drops_two_kinds_of_buffers_alone() -> None:
    base = {"w": torch.tensor([1.0, 100.0], dtype=torch.bfloat16)}
    tuned = {"w": torch.tensor([1.0078125, 100.5], dtype=torch.bfloat16)}
    step = (tuned["w"] - base["w"]).float().tolist()
    by_hand = [float(torch.tensor(1.3 * -d).bfloat16()) for d in step]
    expected = torch.tensor([b + d for b, d in zip([1.0, 100.0], by_hand, strict=True)]).bfloat16()
    assert torch.equal(negate_task_vector(base, tuned, 1.3, parity=True)["w"], expected)
    buffers = {"a": torch.tensor([3]), "b": torch.tensor([3], dtype=torch.int32), "c": torch.tensor([3]).byte()}
    more = {"a": torch.tensor([5]), "b": torch.tensor([5], dtype=torch.int32), "c": torch.tensor([5]).byte()}
    out = negate_task_vector(buffers, more, 1.5, parity=True)
    assert out.keys() == {"b"}
    assert out["b"].tolist() == [0.0]
    assert [v.tolist() for v in negate_task_vector(buffers, more, 1.5).values()] == [[3], [3], [3]]


def test_parity_mirrors_in_the_precision_of_the_weights(make_task: MakeTask, request_: DeletionRequest) -> None:
    task = make_task()
    task.model.bfloat16()
    settings = {"strength": 1.3, "epochs": 1, "learning_rate": 0.02}
    runs = [unlearn(task, request_, "task_vector", settings={**settings, "parity": p}).model for p in (False, True)]
    exact, rounded = (dict(run.named_parameters()) for run in runs)
    apart = [float((exact[n] - rounded[n]).abs().max()) for n in exact]
    moved = max(float((p - rounded[n]).abs().max()) for n, p in task.named_parameters())
    assert 0 < max(apart) < 0.1 * moved


def test_batch_statistics_are_not_mirrored(tiny_predictor: Any, tiny_rows: Any) -> None:
    task = tiny_predictor("resnet")
    request = DeletionRequest(tiny_rows("resnet", range(6)))
    with torch.no_grad():
        for name, buffer in task.model.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1e-3)  # far below that of the forget set, so that mirrored it is below zero
    before = {name: buffer.clone() for name, buffer in task.model.named_buffers()}
    new = unlearn(task, request, "task_vector", settings={**QUICK, "learning_rate": 1e-4}).model
    assert all(torch.equal(buffer, before[name]) for name, buffer in new.model.named_buffers())
    assert torch.isfinite(new.statistics(new.encode(request.forget)).logits).all()  # type: ignore[attr-defined]
