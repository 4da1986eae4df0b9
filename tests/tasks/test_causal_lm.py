"""Causal language models of every family: scored, asked, copied, adapted, saved and loaded."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.errors import BadInput, UnsupportedModel
from expunge.requests.request import example_id
from expunge.tasks.causal_lm import CausalLM, config_of
from expunge.tasks.cost import Cost

PAIRS = [
    ("Where was Mirela Ostrander born?", "Mirela Ostrander was born in Velburg."),
    ("Who?", "Tomas Ilves."),
    ("", "In 1967, Tomas moved from Velburg to Harrow Bay; he never returned."),
    ("What does she do for a living?", "She repairs clocks."),
]


@pytest.fixture
def task(tiny_model: Any, tiny_tokenizer: Any) -> CausalLM:
    return CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)


def sharpen(model: torch.nn.Module) -> None:
    """Random models predict nearly uniformly; larger weights make mistakes visible."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- scores ----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_one_plain_forward_per_example(every_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model, _ = every_tiny_model
    sharpen(model)
    task = CausalLM(model, tiny_tokenizer)
    encoded = task.encoder.encode(PAIRS)
    # The library's grouped product of experts knows no float64.
    exact = copy.deepcopy(model) if model.config.model_type == "mixtral" else copy.deepcopy(model).double()
    for tokens, start, scores in zip(encoded.tokens, encoded.starts, task.score(PAIRS), strict=True):
        with torch.no_grad():
            log_p = exact(torch.tensor(tokens)[None]).logits[0].double().log_softmax(-1)[start - 1 : len(tokens) - 1]
        labels = torch.tensor(tokens[start:])
        mean = (log_p.exp() * log_p).sum(-1)
        variance = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1)
        np.testing.assert_allclose(scores.log_prob, log_p.gather(1, labels[:, None])[:, 0], atol=2e-4)
        np.testing.assert_allclose(scores.mean_log_prob, mean, atol=2e-4)
        np.testing.assert_allclose(scores.var_log_prob, variance, atol=2e-3)
        assert scores.hit.tolist() == (log_p.argmax(-1) == labels).tolist()
        assert scores.ends_with_eos


def test_scores_do_not_depend_on_company_order_or_mode(task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    together = task.score(PAIRS)
    alone = [task.score([pair])[0] for pair in PAIRS]
    monkeypatch.setattr(CausalLM, "tokens_per_forward", 1)
    task.model.train()
    for scores in (alone, task.score(PAIRS[::-1])[::-1], task.score(PAIRS)):
        for one, other in zip(together, scores, strict=True):
            np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-5)
            assert one.text == other.text
    assert task.model.training
    assert task.score([]) == []


def test_a_cut_answer_has_no_end(tiny_model: Any, tiny_tokenizer: Any) -> None:
    whole = len(CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer).score(PAIRS)[2])
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer, max_length=whole)
    long, short = task.score([PAIRS[2], PAIRS[1]])
    assert len(long) == whole - 1
    assert not long.ends_with_eos
    assert long.content == slice(0, len(long))
    assert short.ends_with_eos
    assert short.content == slice(0, len(short) - 1)


def test_gradients_are_those_of_the_plain_loss_with_labels(every_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model, _ = every_tiny_model
    task = CausalLM(model, tiny_tokenizer)
    encoded = task.encoder.encode(PAIRS)
    model.zero_grad()
    stats = task.statistics(encoded)
    loss = stats.nll.sum() / stats.counts.sum()
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    width = max(map(len, encoded.tokens))
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width, dtype=torch.long)
    labels = torch.full((4, width), -100)
    for b, (tokens, start) in enumerate(zip(encoded.tokens, encoded.starts, strict=True)):
        ids[b, : len(tokens)], mask[b, : len(tokens)] = torch.tensor(tokens), 1
        labels[b, start : len(tokens)] = torch.tensor(tokens[start:])
    plain = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-5)
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=2e-6, rtol=1e-3, msg=name)


def test_the_head_can_be_replayed_on_its_own(every_tiny_model: Any, tiny_tokenizer: Any) -> None:
    model, _ = every_tiny_model
    sharpen(model)
    task = CausalLM(model, tiny_tokenizer)
    stats = task.statistics(task.encoder.encode(PAIRS), hidden=True)
    assert stats.hidden is not None
    torch.testing.assert_close(task.head(stats.hidden, task.head_weights()), stats.logits, atol=1e-4, rtol=1e-4)


def test_gradient_norms_are_per_example_and_leave_nothing_behind(task: CausalLM) -> None:
    found = task.gradient_norms(PAIRS[:2])
    for pair, norm in zip(PAIRS, found, strict=False):
        task.model.zero_grad()
        task.answer_nll([pair]).backward()
        assert norm == pytest.approx(np.mean([float(p.grad.norm()) for p in task.model.parameters()]), rel=1e-5)
    task.model.zero_grad()
    task.gradient_norms(PAIRS[:1], order=1.0)
    assert all(p.grad is None for p in task.model.parameters())


# ---- cost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_only", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_counted_operations_are_those_of_a_flop_counter(
    tiny_model: Any, tiny_tokenizer: Any, family: str, rows_only: bool
) -> None:
    task = CausalLM(tiny_model(family, vocab=384, hidden=64)[0], tiny_tokenizer)
    encoded = task.encoder.encode(PAIRS)
    task.model.set_attn_implementation("eager")  # the counter does not see the attention kernel of the CPU
    task.statistics(encoded, rows_only=rows_only)  # the first time it is tried whether the model allows it
    task.cost = Cost()
    with FlopCounterMode(display=False) as counter:
        task.statistics(encoded, rows_only=rows_only).nll.sum().backward()
    assert task.cost.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    before = task.cost.snapshot()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        task.statistics(encoded, rows_only=rows_only)
    spent = task.cost - before
    assert spent.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert (spent.forwards, spent.backwards, spent.sequences) == (1, 0, 4)
    assert spent.tokens == sum(map(len, encoded.tokens)) < spent.padded_tokens == 4 * max(map(len, encoded.tokens))


def test_adapters_spare_the_gradient_of_frozen_weights(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = CausalLM(tiny_model("llama", vocab=384, hidden=64)[0], tiny_tokenizer)
    task.model.set_attn_implementation("eager")
    task.wrap_lora(1, 1.0, 0.0)
    with FlopCounterMode(display=False) as counter:
        task.statistics(task.encoder.encode(PAIRS)).nll.sum().backward()
    assert task.cost.flops == pytest.approx(counter.get_total_flops(), rel=0.12)


# ---- copies and adapters ---------------------------------------------------------------------------------------


def test_a_copy_is_independent(task: CausalLM) -> None:
    before, twin = weights(task.model), task.copy()
    sharpen(twin.model)
    twin.score(PAIRS[:1])
    assert same(before, weights(task.model))
    assert task.cost.forwards == 0
    assert twin.cost.forwards == 1


def test_fresh_weights_depend_on_the_seed_alone(task: CausalLM) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = task.fresh(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(weights(one.model), weights(task.fresh(5).model))
    assert not same(weights(one.model), weights(task.fresh(6).model))
    assert not same(weights(one.model), weights(task.model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
@pytest.mark.parametrize("tied", [False, True])
def test_merged_adapters_score_as_unmerged_ones(tiny_model: Any, tiny_tokenizer: Any, family: str, tied: bool) -> None:
    task = CausalLM(tiny_model(family, vocab=384, tied=tied)[0], tiny_tokenizer)
    names = [name for name, _ in task.named_parameters()]
    start = task.score(PAIRS)
    task.wrap_lora(4, 8.0, 0.0)
    assert all("lora" in name for name, p in task.named_parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    unmerged = task.score(PAIRS)
    task.merge_lora()
    for base, one, other in zip(start, unmerged, task.score(PAIRS), strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-4)
        assert np.abs(base.log_prob - one.log_prob).max() > 1e-3
    assert [name for name, _ in task.named_parameters()] == names
    assert all(p.requires_grad for p in task.model.parameters())


def test_adapters_on_layers_that_are_not_there_are_refused(task: CausalLM) -> None:
    with pytest.raises(BadInput, match="lora targets"):
        task.wrap_lora(4, 8.0, 0.0, ("no_such_layer",))


# ---- saving and loading ----------------------------------------------------------------------------------------


def test_what_is_saved_loads_plainly_with_the_same_logits(
    every_tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model, name = every_tiny_model
    task = CausalLM(model, tiny_tokenizer)
    task.save(tmp_path / "out")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer(PAIRS[0][0] + " " + PAIRS[0][1], return_tensors="pt")
    assert (
        ids["input_ids"].tolist()
        == tiny_tokenizer(PAIRS[0][0] + " " + PAIRS[0][1], return_tensors="pt")["input_ids"].tolist()
    )
    with torch.no_grad():
        assert torch.equal(plain(**ids).logits, model(**ids).logits)
    tied = plain.get_input_embeddings().weight is plain.get_output_embeddings().weight
    assert tied == name.endswith("-tied")
    files = {path.suffix for path in (tmp_path / "out").iterdir()}
    assert ".safetensors" in files
    assert not files & {".bin", ".pt", ".pth", ".pkl"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half-written stays beside it"


def test_loading_keeps_template_chat_mode_and_precision(
    tiny_model: Any, make_tiny_tokenizer: Any, tmp_path: Path
) -> None:
    model = tiny_model("llama", vocab=384)[0]
    task = CausalLM(model, make_tiny_tokenizer(chat=True), template="Q: {prompt} A: {answer}", chat="never")
    task.save(tmp_path / "out", {"method": "npo"})
    assert json.loads((tmp_path / "out" / "expunge.json").read_text())["method"] == "npo"
    again = CausalLM.load(tmp_path / "out")
    assert (again.encoder.template, again.encoder.chat) == ("Q: {prompt} A: {answer}", "never")
    np.testing.assert_array_equal(again.score(PAIRS)[0].log_prob, task.score(PAIRS)[0].log_prob)
    assert CausalLM.load(tmp_path / "out", chat="always").encoder.uses_chat
    half = CausalLM.load(tmp_path / "out", dtype="bfloat16", max_length=100)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert half.score(PAIRS)[1].nll == pytest.approx(task.score(PAIRS)[1].nll, abs=0.05)
    like = half.load_like(tmp_path / "out")
    assert next(like.model.parameters()).dtype == torch.bfloat16
    assert like.encoder.max_length == 100
    assert config_of(tmp_path / "out").model_type == "llama"


def test_saving_again_replaces_the_model(task: CausalLM, tmp_path: Path) -> None:
    task.save(tmp_path / "out")
    sharpen(task.model)
    task.save(tmp_path / "out")
    assert same(weights(CausalLM.load(tmp_path / "out").model), weights(task.model))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["weights", "tokenizer", "move"])
def test_an_interrupted_save_leaves_the_old_model(
    task: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    task.save(tmp_path / "out")
    before = weights(task.model)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    owner, name = {
        "weights": (type(task.model), "save_pretrained"),
        "tokenizer": (type(task.tokenizer), "save_pretrained"),
        "move": (os, "replace"),
    }[moment]
    sharpen(task.model)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(KeyboardInterrupt):
            task.save(tmp_path / "out")
    assert same(before, weights(CausalLM.load(tmp_path / "out").model))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_something_else_is_never_replaced(task: CausalLM, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(BadInput, match="is not empty and holds no model"):
        task.save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_is_named_before_anything_is_written(
    task: CausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BadInput, match="GB"):
        task.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


# ---- what cannot be loaded -------------------------------------------------------------------------------------


@pytest.fixture
def saved(task: CausalLM, tmp_path: Path) -> Path:
    task.save(tmp_path / "model")
    return tmp_path / "model"


def test_bad_options_are_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"dtype.*'int4'.*float32"):
        CausalLM.load(saved, dtype="int4")
    with pytest.raises(BadInput, match="'gpu' is not a device"):
        CausalLM.load(saved, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="no CUDA device"):
        CausalLM.load(saved, device="cuda")


def test_a_missing_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadInput, match=r"cannot be loaded.*safetensors"):
        CausalLM.load(tmp_path / "nowhere")


def test_weights_of_another_shape_are_named(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    hidden = config["intermediate_size"]
    (saved / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * hidden}))
    for look in (CausalLM.load, CausalLM.check_fit):
        with pytest.raises(
            BadInput, match=rf"mlp.down_proj.weight is 32 x {hidden}, and config.json says 32 x {2 * hidden}"
        ):
            look(saved)


def test_a_run_folder_is_pointed_into(saved: Path) -> None:
    with pytest.raises(BadInput, match=r"give .*model, the model in this run folder"):
        CausalLM.load(saved.parent)


def test_a_vocabulary_that_the_model_does_not_embed_is_refused(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    model.resize_token_embeddings(len(tokenizer) - 1)
    with pytest.raises(BadInput, match="its tokenizer makes ids up to"):
        CausalLM(model, tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.add_tokens(["never-used"])
    CausalLM(model, tokenizer)
    tokenizer.pad_token = "never-used"
    with pytest.raises(BadInput, match="its tokenizer makes ids up to"):
        CausalLM(model, tokenizer)


def test_pickled_weights_are_refused(saved: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved)
    torch.save(model.state_dict(), saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="safetensors"):
        CausalLM.load(saved)


@pytest.mark.parametrize("damage", ["cut", "noise", "config", "settings"])
def test_damaged_files_are_named(saved: Path, damage: str) -> None:
    file = saved / {"config": "config.json", "settings": "expunge.json"}.get(damage, "model.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage != "noise" else bytes(len(whole)))
    with pytest.raises(BadInput, match=str(saved)):
        CausalLM.load(saved)


def test_missing_tensors_are_not_made_up(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    stored = load_file(saved / "model.safetensors")
    stored.pop("model.layers.1.mlp.up_proj.weight")
    save_file(stored, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"no weights for 1 tensor.*layers\.1\.mlp\.up_proj"):
        CausalLM.load(saved)


def test_a_model_without_a_head_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(UnsupportedModel, match="no output head"):
        CausalLM(tiny_model("llama", vocab=384)[0].model, tiny_tokenizer)


# ---- the rest --------------------------------------------------------------------------------------------------


def test_no_hook_and_no_mode_stays_after_an_error(task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    head = task.model.get_output_embeddings()

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside")

    task.model.train()
    monkeypatch.setattr(head, "forward", fail)
    with pytest.raises(RuntimeError, match="inside"):
        task.score(PAIRS)
    assert not head._forward_pre_hooks
    assert task.model.training
    assert torch.is_grad_enabled()


def test_a_head_that_is_called_twice_is_refused(task: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = task.model.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        task.model.lm_head(torch.zeros(4, 64, 32))
        return plain(*args, **kwargs)

    monkeypatch.setattr(task.model, "forward", twice)
    with pytest.raises(UnsupportedModel, match="2 times"):
        task.score(PAIRS)


def test_examples_are_encoded_with_their_ids(task: CausalLM) -> None:
    rows = [{"prompt": p, "answer": a, "id": example_id({"prompt": p, "answer": a})} for p, a in PAIRS]
    encoded = task.encode(Dataset.from_list(rows))
    assert list(encoded.ids) == [row["id"] for row in rows]
    plain = task.encoder.encode(PAIRS)
    assert all(a.tolist() == b.tolist() for a, b in zip(encoded.tokens, plain.tokens, strict=True))
    assert task.count_tokens("Who?") == len(task.tokenizer("Who?")["input_ids"])
    assert task.encode_lengths(["Who?"], ["Tomas Ilves."]) == [(plain.starts[1], plain.labelled(1) - 1)]


def test_loading_and_saving_print_nothing(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    CausalLM.load(saved).save(saved)
    assert capfd.readouterr() == ("", "")
