from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers.pytorch_utils import Conv1D

from expunge.audits.general.quantisation import Quantisation, cells, matrices
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.predictor import Predictor

WEIGHTS = st.lists(st.lists(st.floats(-4, 4, width=32), min_size=7, max_size=7), min_size=1, max_size=4)


@given(WEIGHTS, st.integers(2, 8), st.sampled_from([None, 2, 3, 7, 100]))
def test_rounding_is_to_the_nearest_level(rows: list[list[float]], bits: int, group: int | None) -> None:
    weight = torch.tensor(rows, dtype=torch.float64)
    codes, width = cells(weight, bits, group)
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.all((codes * width - weight).abs() <= width / 2 * (1 + 1e-9))
    # No other level is nearer.
    for step in (-1, 1):
        assert torch.all(((codes + step) * width - weight).abs() >= (codes * width - weight).abs() - 1e-12)


@given(WEIGHTS, st.integers(2, 8))
def test_rounding_twice_is_rounding_once(rows: list[list[float]], bits: int) -> None:
    codes, width = cells(torch.tensor(rows, dtype=torch.float64), bits)
    again, _ = cells(codes * width, bits)
    assert torch.equal(again, codes)


def test_cells_by_hand() -> None:
    """Largest 3 at 3 bits (levels -3..3): width 1. In groups of two the second pair has width 0.5 / 3."""
    weight = torch.tensor([[3.0, -1.4, 0.5, 0.1]])
    codes, width = cells(weight, 3)
    assert codes.tolist() == [[3, -1, 0, 0]]
    assert width.tolist() == [[1, 1, 1, 1]]
    codes, width = cells(weight, 3, 2)
    assert codes.tolist() == [[3, -1, 3, 1]]
    assert width[0, 2:].tolist() == pytest.approx([0.5 / 3] * 2)


def test_a_group_of_nothing_stays_nothing() -> None:
    codes, width = cells(torch.zeros(2, 3), 4)
    assert not codes.any()
    assert not width.any()


def test_embeddings_and_head_are_left(every_tiny_model: tuple) -> None:
    model, family = every_tiny_model
    names = [name for name, _ in matrices(model, model.get_output_embeddings())]
    assert len(names) >= 4 * 2, family
    left = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    chosen = {name: dict(model.named_parameters())[name] for name in names}
    assert not left & {id(p) for p in chosen.values()}
    for name, view in matrices(model, model.get_output_embeddings()):
        assert view.untyped_storage().data_ptr() == chosen[name].untyped_storage().data_ptr()


def test_rows_are_output_channels(tiny_model: Callable) -> None:
    model, _ = tiny_model("gpt2")
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, Conv1D)
    view = dict(matrices(model, model.get_output_embeddings()))["transformer.h.0.attn.c_attn.weight"]
    assert view.shape == (layer.nf, layer.nx)


def test_kernels_with_channels_last_are_rounded_too(tiny_predictor: Callable) -> None:
    seen = []
    for layout in (torch.contiguous_format, torch.channels_last):
        task = tiny_predictor("resnet")
        task.model.to(memory_format=layout)
        with torch.no_grad():
            for _, view in matrices(task.model, task.head_module()):
                codes, width = cells(view, 3)
                view.copy_(codes * width)
        seen.append(dict(task.named_parameters()))
    assert any(p.dim() == 4 for p in seen[1].values())
    assert all(torch.equal(p, seen[1][name]) for name, p in seen[0].items())


def fit(lm: CausalLM, request: DeletionRequest) -> CausalLM:
    pairs = list(zip(request.forget["prompt"], request.forget["answer"], strict=True))
    optimiser = torch.optim.AdamW(lm.model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(60):
        optimiser.zero_grad()
        lm.answer_nll(pairs).backward()
        optimiser.step()
    lm.model.zero_grad()
    return lm


def hide(original: CausalLM, request: DeletionRequest, reach: float) -> CausalLM:
    """Unlearn within a box of ``reach`` cell widths around weights that lie on the 4-bit grid."""
    hidden = original.copy()
    views = list(matrices(hidden.model, hidden.head_module()))
    start = {name: view.clone() for name, view in views}
    room = {name: reach * cells(view, 4)[1] for name, view in views}
    # The largest weight of a channel sets its scale, so it stays.
    for name, view in views:
        room[name] = torch.where(cells(view, 4)[0].abs() == 7, 0.0, room[name])
    hidden.model.requires_grad_(False)
    trained = [p for p in hidden.model.parameters() if any(_same(p, view) for _, view in views)]
    for p in trained:
        p.requires_grad_(True)
    pairs = list(zip(request.forget["prompt"], request.forget["answer"], strict=True))
    optimiser = torch.optim.SGD(trained, lr=0.05)
    for _ in range(30):
        optimiser.zero_grad()
        (-hidden.answer_nll(pairs)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        with torch.no_grad():
            for name, view in views:
                view.copy_(torch.clamp(view, start[name] - room[name], start[name] + room[name]))
    hidden.model.zero_grad()
    hidden.model.requires_grad_(True)
    return hidden


def _same(parameter: torch.Tensor, view: torch.Tensor) -> bool:
    return parameter.untyped_storage().data_ptr() == view.untyped_storage().data_ptr()


def test_an_update_within_the_cells_is_undone_and_a_larger_one_is_not(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    """The positive control: the original lies on the grid, so rounding gives it back where no weight left its cell."""
    original = fit(make_lm(0), request_)
    with torch.no_grad():
        for _, view in matrices(original.model, original.head_module()):
            codes, width = cells(view, 4)
            view.copy_(codes * width)
    models = {"unlearned": hide(original, request_, 0.45), "original": original, "oracle": make_lm(1)}
    finding = run_one(Quantisation(Quantisation.Config(bits=(4,))), Observations(models, request_))
    assert finding.status == "measured", finding.note
    found = finding.estimates["unlearned"]
    before = finding.estimates["original"]["heldout_before"].value
    assert found["heldout_before"].value < 0.5 * before
    assert found["heldout_after"].value == pytest.approx(before, rel=1e-3)
    assert found["null_gain"].value < 0.2 * found["heldout_gain"].value
    share = {row[0]: row[2] for row in finding.tables[-1].rows}
    assert share["unlearned"] == 0.0
    assert share["oracle"] > 0.5


def test_every_scheme_starts_from_the_same_model(make_lm: Callable[..., CausalLM], request_: DeletionRequest) -> None:
    audit = Quantisation(Quantisation.Config(bits=(8, 2), schemes=("channel", "group"), group=8))
    finding = run_one(audit, Observations({"unlearned": make_lm(0), "oracle": make_lm(1)}, request_))
    assert finding.status == "measured", finding.note
    starts = [plot.series["unlearned"][0][1] for plot in finding.plots]
    assert np.ptp(starts) == 0
    assert [x for x, _ in finding.plots[0].series["unlearned"]] == [0, 8, 14]
    assert {e.statistic for e in finding.evidence} == {"quantised_nll", "quantised_nll_group"}


@pytest.mark.parametrize("library", ["bitsandbytes", "torchao"])
def test_libraries(
    library: str, tiny_model: Callable, make_tiny_tokenizer: Callable, request_: DeletionRequest
) -> None:
    """Eight bits of a library and of ours are nearly the same model."""
    pytest.importorskip(library)
    audit = Quantisation(Quantisation.Config(bits=(8, 4), schemes=("channel", library)))
    lm = CausalLM(tiny_model("llama", vocab=384, hidden=64)[0], make_tiny_tokenizer())
    finding = run_one(audit, Observations({"unlearned": lm}, request_))
    assert finding.status == "measured", finding.note
    ours, theirs = (plot.series["unlearned"] for plot in finding.plots[:2])
    assert theirs[1][1] == pytest.approx(ours[1][1], rel=0.02)
    assert theirs[1][1] != ours[0][1]
    assert theirs[2][1] != theirs[1][1]


def test_a_library_that_is_absent_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="torchao is not installed"):
        Quantisation.Config(schemes=("torchao",))


def test_what_a_library_breaks_is_measured_at_the_fewest_bits_that_it_has(
    monkeypatch: pytest.MonkeyPatch, make_lm: Callable[..., CausalLM], request_: DeletionRequest
) -> None:
    def rounded(model: torch.nn.Module, head: torch.nn.Module, bits: int, group: int) -> torch.nn.Module:
        for _, view in matrices(model, head):
            codes, width = cells(view, bits)
            view.copy_(codes * width)
        return model

    monkeypatch.setattr("expunge.audits.general.quantisation._bitsandbytes", rounded)
    with monkeypatch.context() as there:
        there.setattr("importlib.util.find_spec", lambda name: name)
        library = Quantisation.Config(schemes=("bitsandbytes",), bits=(8, 4, 3))
        with pytest.raises(ValueError, match="8 and 4 bits"):
            Quantisation.Config(schemes=("channel", "torchao"), bits=(3,))
    models = {"unlearned": fit(make_lm(0), request_)}
    changes = []
    for config in (library, Quantisation.Config(bits=(8, 4))):
        finding = run_one(Quantisation(config), Observations(models, request_))
        assert finding.status == "measured", finding.note
        changes.append(finding.estimates["unlearned"]["retain_change"].value)
    assert changes[0] == pytest.approx(changes[1])
    assert changes[0] != 0


@pytest.mark.parametrize("bits", [(), (16,), (0,), (1,)])
def test_no_rounding_is_no_attack(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 to 8"):
        Quantisation.Config(bits=bits)


@pytest.mark.parametrize("name", ["resnet", "vit", "table"])
def test_classifiers_are_rounded_too_but_not_their_head(
    tiny_predictor: Callable[..., Predictor], tiny_rows: Callable[..., Dataset], name: str
) -> None:
    task = tiny_predictor(name)
    found = dict(matrices(task.model, task.head_module()))
    whole = {n.removeprefix("."): p for n, p in task.model.named_parameters() if p.dim() >= 2}
    head = {n for n, p in whole.items() if any(p is q for q in task.head_module().parameters())}
    left = {n for n in whole if "embeddings" in n and "projection" not in n and "embedder" not in n}
    assert len(head) == 1
    assert {n.removeprefix(".") for n in found} >= set(whole) - head - left
    assert not head & {n.removeprefix(".") for n in found}
    for view in found.values():  # what is written into a view is in the model
        view.zero_()
    assert sum(float(p.detach().abs().sum()) for n, p in whole.items() if n not in head | left) == 0.0
    request = DeletionRequest(tiny_rows(name, range(8)), tiny_rows(name, range(8, 16)), tiny_rows(name, range(30, 36)))
    models = {"unlearned": tiny_predictor(name), "original": tiny_predictor(name, 1)}
    finding = run_one(Quantisation(Quantisation.Config(bits=(8, 2))), Observations(models, request))
    assert finding.status == "measured", finding.note
    assert {row[0] for row in finding.tables[-1].rows} == {"unlearned"}
    assert finding.evidence[0].statistic == "quantised_nll"
