"""Classifiers and regressors of every kind: asked, copied, varied, adapted, saved, loaded, made anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from expunge.errors import BadInput, UnsupportedModel
from expunge.tasks.factories import Factory
from expunge.tasks.loading import load_task, task_class
from expunge.tasks.outcomes import Numbers
from expunge.tasks.predictions import ExampleRow
from expunge.tasks.predictor import Predictor

Make = Callable[..., Predictor]
Rows = Callable[[str, range], Dataset]
IMAGES = ("resnet", "vit", "convnext", "swin")
NAMES = (*IMAGES, "module", "bert", "gpt2-score", "table", "image-regressor", "table-regressor")
KINDS = dict.fromkeys((*IMAGES, "module"), "image_classifier")
KINDS |= {"bert": "text_classifier", "gpt2-score": "text_classifier", "table": "tabular_classifier"}
KINDS |= {"image-regressor": "regressor", "table-regressor": "regressor"}


def factory_of(name: str) -> str | None:
    return "tiny_modules:plain_module" if name == "module" else None


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_a_plain_forward(tiny_predictor: Make, tiny_rows: Rows, name: str) -> None:
    task, examples = tiny_predictor(name), tiny_rows(name, range(7))
    task.model.eval()
    encoded = task.encode(examples)
    with torch.no_grad():
        stats = task.statistics(encoded, hidden=True)
        batch = task.batch(encoded)
        plain = task.model(**batch).logits if name not in ("module", "table", "table-regressor") else None
        if plain is None:
            plain = task.model(*batch.values())
    assert task.kind == KINDS[name]
    torch.testing.assert_close(stats.logits, plain)
    targets = encoded.targets
    if task.kind == "regressor":
        expected = nn.functional.mse_loss(plain, targets, reduction="none").mean(1)
    else:
        expected = nn.functional.cross_entropy(plain, targets, reduction="none")
    torch.testing.assert_close(stats.nll, expected)
    torch.testing.assert_close(stats.mean_nll, expected)
    torch.testing.assert_close(task.losses(plain, targets), expected)
    assert stats.labelled.all()
    # The head alone, on what it was given, says the same.
    assert stats.hidden is not None
    torch.testing.assert_close(task.head(stats.hidden, task.head_weights()), stats.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_at_a_time_and_together_come_to_the_same_in_evaluation(
    tiny_predictor: Make, tiny_rows: Rows, name: str
) -> None:
    task, examples = tiny_predictor(name), tiny_rows(name, range(5))
    task.model.train()
    luck = torch.random.get_rng_state()
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    together = task.observe(task.encode(examples))
    alone = task.score([ExampleRow(examples, k) for k in (3, 1)])
    assert list(together.ids) == list(examples["id"])
    np.testing.assert_allclose([s.nll for s in alone], together.nll[[3, 1]], rtol=1e-4, atol=1e-5)
    assert together.features is not None
    assert task.model.training
    assert torch.equal(luck, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items()), "buffers moved"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_loaded_and_a_copy_is_independent(
    tiny_predictor: Make, tiny_rows: Rows, tmp_path: Path, name: str
) -> None:
    task, examples = tiny_predictor(name), tiny_rows(name, range(4))
    task.save(tmp_path / "m", {"method": "none"})
    assert task_class(tmp_path / "m") is Predictor
    again = load_task(tmp_path / "m", factory=factory_of(name))
    assert again.kind == task.kind
    expected = task.observe(task.encode(examples)).outputs
    np.testing.assert_array_equal(again.observe(again.encode(examples)).outputs, expected)  # type: ignore[attr-defined]
    other = task.copy()
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    np.testing.assert_array_equal(task.observe(task.encode(examples)).outputs, expected)
    like = task.load_like(tmp_path / "m")
    assert like.outcome == task.outcome


@pytest.mark.parametrize("name", [*IMAGES, "bert"])
def test_the_librarys_own_loader_gives_the_same_weights_and_ours_reads_the_librarys_folder(
    tiny_predictor: Make, tiny_rows: Rows, tmp_path: Path, name: str
) -> None:
    task = tiny_predictor(name)
    task.save(tmp_path / "m")
    auto = AutoModelForSequenceClassification if name == "bert" else AutoModelForImageClassification
    plain = auto.from_pretrained(tmp_path / "m")
    own = task.model.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in plain.state_dict().items())
    (tmp_path / "m" / "expunge.json").unlink()
    again = load_task(tmp_path / "m")
    assert again.kind == task.kind
    assert again.outcome == task.outcome  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["resnet", "module", "table"])
def test_fresh_weights_and_buffers_follow_the_seed(tiny_predictor: Make, tiny_rows: Rows, name: str) -> None:
    task = tiny_predictor(name, 5)
    task.model.train()
    task.statistics(task.encode(tiny_rows(name, range(6))))  # moves the running statistics
    one, same, other = (task.fresh(seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(v, same[k]) for k, v in one.items())
    assert any(not torch.equal(v, other[k]) for k, v in one.items())
    for key, value in one.items():
        if key.endswith("running_mean"):
            assert (value == 0).all(), "an exact retraining starts without what was seen"


def test_a_table_is_scaled_by_what_is_kept(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task = tiny_predictor("table")
    new = task.fresh(0)
    new.refit(tiny_rows("table", range(5)))
    assert new.inputs != task.inputs
    assert new.outcome == task.outcome
    assert task.inputs == tiny_predictor("table").inputs


@pytest.mark.parametrize("name", ["resnet", "vit", "bert", "module", "table"])
def test_adapters_leave_the_head_and_fold_away(tiny_predictor: Make, tiny_rows: Rows, name: str) -> None:
    task = tiny_predictor(name)
    before = copy.deepcopy(task.model.state_dict())
    encoded = task.encode(tiny_rows(name, range(6)))
    task.wrap_lora(2, 4.0, 0.0)
    task.model.train()
    optimiser = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        task.statistics(encoded).nll.mean().backward()
        optimiser.step()
    task.model.eval()
    with torch.no_grad():
        adapted = task.statistics(encoded, hidden=True)
        task.merge_lora()
        merged = task.statistics(encoded, hidden=True)
    torch.testing.assert_close(adapted.logits, merged.logits, atol=1e-4, rtol=1e-4)
    after = task.model.state_dict()
    assert set(after) == set(before)
    changed = {k for k, v in after.items() if not torch.equal(v, before[k]) and v.dim() > 1}
    assert changed
    assert task._head is not None
    assert f"{task._head}.weight" not in changed


def test_a_batch_of_one_is_trained_with_what_normalisation_has_learned(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task = tiny_predictor("resnet")
    task.model.train()
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    assert torch.isfinite(task.statistics(task.encode(tiny_rows("resnet", range(1)))).nll).all()
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    task.statistics(task.encode(tiny_rows("resnet", range(4))))
    assert any(not torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert task.mixes_examples
    assert not tiny_predictor("vit").mixes_examples


@pytest.mark.parametrize("name", ["vit", "resnet", "table"])
def test_gradients_of_single_examples_can_be_vectorised(tiny_predictor: Make, tiny_rows: Rows, name: str) -> None:
    task = tiny_predictor(name)
    task.model.eval()
    encoded = task.encode(tiny_rows(name, range(3)))
    weights = {k: v.detach() for k, v in task.model.named_parameters()}
    batch = task.batch(encoded)

    def loss(weights: Any, inputs: Any, target: torch.Tensor) -> torch.Tensor:
        def call(*args: Any, **kwargs: Any) -> Any:
            return torch.func.functional_call(task.model, weights, args, kwargs)

        logits = task.predict({k: v.unsqueeze(0) for k, v in inputs.items()}, call)
        return task.losses(logits, target.unsqueeze(0))[0]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="different")(
        weights, batch, encoded.targets
    )
    for i in range(3):
        task.model.zero_grad()
        # In the same padded batch, so that both read the same numbers.
        task.losses(task.predict(batch), encoded.targets)[i].backward()
        for key, parameter in task.model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(each[key][i], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_account_counts_operations_as_torch_does(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task = tiny_predictor("vit")
    encoded = task.encode(tiny_rows("vit", range(6)))
    with torch.no_grad():
        task.statistics(encoded.take([0, 1]))
        before = task.cost.snapshot()
        with FlopCounterMode(display=False) as counter:
            task.model(**task.batch(encoded))
        task.statistics(encoded)
    spent = task.cost - before
    assert spent.flops == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert (spent.forwards, spent.sequences) == (1, 6)


# ---- what cannot be --------------------------------------------------------------------------------------------


def test_a_head_that_does_not_match_is_refused(tiny_predictor: Make, tiny_rows: Rows) -> None:
    model = tiny_predictor("resnet").model
    with pytest.raises(UnsupportedModel, match="has 3 outputs for 2"):
        Predictor.of_images(model, ["one", "two"])
    loose = Predictor.of_images(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), ["a", "b"])
    rows = [{**row, "label": "ab"[k]} for k, row in enumerate(tiny_rows("resnet", range(2)).to_list())]
    encoded = loose.encode(Dataset.from_list(rows))
    with pytest.raises(UnsupportedModel, match=r"outputs of shape \(2, 5\) for 2 per example"):
        loose.statistics(encoded)


def test_a_plain_module_needs_a_factory_to_be_saved_or_made_anew(tmp_path: Path) -> None:
    task = Predictor.of_images(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), ["a", "b"])
    for call in (lambda: task.save(tmp_path / "m"), lambda: task.fresh(0)):
        with pytest.raises(BadInput, match="cannot be made again without a factory"):
            call()
    assert not (tmp_path / "m").exists()


def test_scalar_outputs_without_a_last_dimension_are_served() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(192, 1)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.layer(pixels.flatten(1))[:, 0]

    task = Predictor.of_images(Flat(), Numbers())
    rows = [{"id": str(i), "image": np.zeros((8, 8, 3), int).tolist(), "target": float(i)} for i in range(3)]
    assert task.statistics(task.encode(Dataset.from_list(rows))).logits.shape == (3, 1)


def test_damaged_folders_are_named(tiny_predictor: Make, tmp_path: Path) -> None:
    task = tiny_predictor("table")
    task.save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(BadInput, match=r"model\.safetensors.*cannot be loaded"):
        load_task(tmp_path / "m")
    other = Factory("expunge.tasks.mlp:mlp", {"inputs": 4, "outputs": 2, "hidden": [3]})
    task.factory = other
    task.save(tmp_path / "n")
    for look in (load_task, Predictor.check_fit):
        with pytest.raises(BadInput, match=r"cannot be loaded: .*1\.weight.*and these arguments"):
            look(tmp_path / "n")


def test_what_nonlinearities_give_out_comes_beside_the_logits(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task = tiny_predictor("table")
    encoded = task.encode(tiny_rows("table", range(3)))
    (shape,) = task.nonlinearities(encoded)
    stats = task.statistics(encoded, blocks=(0,))
    assert stats.blocks[0].shape == shape
    (inputs,) = task.batch(encoded).values()
    first = next(m for m in task.model.modules() if isinstance(m, nn.Linear))
    torch.testing.assert_close(stats.blocks[0], first(inputs).relu())
    torch.testing.assert_close(task.statistics(encoded).logits, stats.logits)
    assert not any(m._forward_hooks for m in task.model.modules())
    with pytest.raises(UnsupportedModel, match="calls 1 of the nonlinearities 0, 7 that are read"):
        task.statistics(encoded, blocks=(0, 7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["resnet", "module", "table", "table-regressor", "vit"])
def test_a_model_of_another_precision_is_given_its_inputs_in_that(
    tiny_predictor: Make, tiny_rows: Rows, name: str, dtype: torch.dtype
) -> None:
    task, examples = tiny_predictor(name), tiny_rows(name, range(7))
    expected = task.observe(task.encode(examples)).outputs
    task.model.to(dtype)
    encoded = task.encode(examples)
    np.testing.assert_allclose(task.observe(encoded).outputs, expected, atol=1e-5 if dtype == torch.float64 else 0.1)
    loss = task.statistics(encoded).nll.mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in task.model.parameters() if p.grad is not None} == {dtype}


def test_weights_of_whole_numbers_say_nothing_of_the_inputs(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task, examples = tiny_predictor("table"), tiny_rows("table", range(7))
    before = task.observe(task.encode(examples)).outputs
    packed = nn.Module()  # as libraries that quantise keep weights
    packed.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    task.model = nn.Sequential(packed, *task.model)
    packed.forward = lambda x: x  # type: ignore[method-assign]
    assert next(task.model.parameters()).dtype == torch.int8
    np.testing.assert_array_equal(task.observe(task.encode(examples)).outputs, before)


class Tied(nn.Module):
    """Two layers that share their weight, and one that has its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.one, self.other, self.top = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.top(self.other(self.one(self.own(x)).tanh()).tanh())
        return out


def test_adapters_leave_layers_that_share_their_weights_alone(tiny_predictor: Make, tiny_rows: Rows) -> None:
    task = tiny_predictor("table")
    tied = Predictor(Tied(), task.inputs, task.outcome)
    encoded = tied.encode(tiny_rows("table", range(6)))
    tied.wrap_lora(2, 4.0, 0.0)
    with torch.no_grad():
        for name, p in tied.model.named_parameters():
            if "lora_B" in name:
                p.normal_()
        tied.model.eval()
        adapted = tied.statistics(encoded).logits
        tied.merge_lora()
        torch.testing.assert_close(tied.statistics(encoded).logits, adapted)
    with pytest.raises(BadInput, match="hold weights that other layers share, such as one"):
        Predictor(Tied(), task.inputs, task.outcome).wrap_lora(2, 4.0, 0.0, ["own", "other"])
    alone = nn.Sequential(nn.LSTM(1, 3), nn.Linear(3, 3))
    with pytest.raises(BadInput, match="has none of its own but the head"):
        Predictor(alone, task.inputs, task.outcome).wrap_lora(2, 4.0, 0.0)
