"""Several models as one: against the sum of what each says alone, in every way in which a model can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from expunge.errors import BadInput
from expunge.tasks.blocks import first_blocks
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.combination import Combination, combine
from expunge.tasks.cost import Cost
from expunge.tasks.intervene import embeddings_at
from expunge.tasks.loading import load_task
from expunge.tasks.logit_ensemble import LogitEnsemble
from expunge.tasks.scoring import score_each

FAMILIES = ("llama", "qwen2", "gpt2", "olmo2", "gemma2", "mixtral", "gpt_neox")
PROMPTS = ["Where was Mirela Ostrander born?", "Who?", "In 1967, Tomas moved from Velburg to", "", "What?"]
PAIRS = [("Who repairs clocks?", "Mirela Ostrander."), ("", "Zoë's café in Kraków."), ("Where?", "Velburg")]
RULE = Combination((-0.6,), filter=1e-2, min_keep=20)
MakeModel = Callable[..., tuple[Any, str]]


def lively(model: Any, seed: int) -> Any:
    """Weights large enough that the models say different things."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def two(make: MakeModel, tokenizer: Any, family: str, rule: Combination = RULE) -> LogitEnsemble:
    """A model and a shallower one of the same family."""
    main = CausalLM(lively(make(family, vocab=384, layers=3)[0], 1), tokenizer)
    return LogitEnsemble(main, [lively(make(family, vocab=384)[0], 2)], rule)


def adapted(make: MakeModel, tokenizer: Any, family: str = "llama", tied: bool = False) -> LogitEnsemble:
    """A model and its own first block with an adapter."""
    main = CausalLM(lively(make(family, vocab=384, layers=3, tied=tied)[0], 1), tokenizer)
    other = CausalLM(first_blocks(main.model, 1), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        other.wrap_lora(2, 4.0, 0.0)
        for name, parameter in other.model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
    made = LogitEnsemble(main, [other.model], RULE, blocks=[1])
    made.model.eval()
    made.model.requires_grad_(True)
    return made


def alone(task: LogitEnsemble, ids: list[int]) -> torch.Tensor:
    """(T, V): what comes out when each model reads a text by itself."""
    with torch.no_grad():
        logits = [member(input_ids=torch.tensor([ids])).logits[0] for member in task.model.members()]
    return combine(logits, task.model.rule)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_combined_prediction(tiny_model: Any, tiny_tokenizer: Any, family: str) -> None:
    task = two(tiny_model, tiny_tokenizer, family)
    encoded = task.encoder.encode(PAIRS)
    for scores, tokens, start in zip(task.score(PAIRS), encoded.tokens, encoded.starts, strict=True):
        log_probs = torch.log_softmax(alone(task, tokens.tolist()).double(), -1)
        targets = torch.tensor(tokens[start:])
        expected = log_probs[start - 1 : -1].gather(-1, targets[:, None])[:, 0]
        np.testing.assert_allclose(scores.log_prob, expected.numpy(), atol=1e-4)
    main = task.base.score(PAIRS)
    assert not np.allclose(main[0].log_prob, task.score(PAIRS)[0].log_prob, atol=1e-2), "the other one must matter"


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_combined_prediction(
    tiny_model: Any, tiny_tokenizer: Any, family: str, parity: bool
) -> None:
    rule = Combination((-0.6,), filter=0.1, parity=True) if parity else RULE
    task = two(tiny_model, tiny_tokenizer, family, rule)
    found = task.generate(PROMPTS, [9, 2, 7, 5, 1])
    for text, ids, limit in zip(found, task.encoder.encode_prompts(PROMPTS), [9, 2, 7, 5, 1], strict=True):
        new: list[int] = []
        for _ in range(limit):
            with torch.no_grad():
                said = [m(input_ids=torch.tensor([ids + new])).logits[0, -1] for m in task.model.members()]
            token = int(combine(said, rule, generating=True).argmax())
            if token == task.encoder.eos_id:
                break
            new.append(token)
        assert text == task.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert found != task.base.generate(PROMPTS, [9, 2, 7, 5, 1])


def test_rows_that_end_early_leave_the_others_alone(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = two(tiny_model, tiny_tokenizer, "llama")
    apart = [task.generate([p], [12])[0] for p in PROMPTS]
    assert task.generate(PROMPTS, [12] * len(PROMPTS)) == apart
    sampled = [task.generate([p], [6], temperature=1.0, seed=3)[0] for p in PROMPTS]
    assert task.generate(PROMPTS, [6] * len(PROMPTS), temperature=1.0, seed=3) == sampled


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_blocks_are_a_model_of_the_same_weights(tiny_model: Any, family: str) -> None:
    whole = tiny_model(family, layers=3)[0]
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    cut = first_blocks(whole, 2)
    ids = torch.arange(3, 17)[None]
    with torch.no_grad():
        hidden = whole(input_ids=ids, output_hidden_states=True).hidden_states
        shallow = cut(input_ids=ids, output_hidden_states=True, use_cache=True)
    torch.testing.assert_close(shallow.hidden_states[1], hidden[1])
    assert len(shallow.hidden_states) == 3
    assert shallow.past_key_values.get_seq_length() == 14
    own = {id(p) for p in whole.parameters()}
    assert {id(p) for p in cut.parameters()} < own
    assert all(torch.equal(before[name], value) for name, value in whole.state_dict().items())
    assert whole.config.num_hidden_layers == 3
    for count in (0, 4):
        with pytest.raises(BadInput, match="the model has 3"):
            first_blocks(whole, count)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_a_folder_gives_back_the_same_model(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path, family: str, tied: bool
) -> None:
    task = adapted(tiny_model, tiny_tokenizer, family, tied)
    scores, texts = task.score(PAIRS), task.generate(PROMPTS, [6] * 5)
    task.save(tmp_path / "out", {"method": "uld", "removal_level": "guard"})
    again = load_task(tmp_path / "out")
    assert isinstance(again, LogitEnsemble)
    assert again.model.rule == task.model.rule
    for one, other in zip(again.score(PAIRS), scores, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, atol=1e-6)
    assert again.generate(PROMPTS, [6] * 5) == texts
    shared = {id(p) for p in again.model.main.parameters()}
    assert sum(id(p) in shared for p in again.model.others.parameters()) >= 5, "blocks are held once"
    # By the library alone, it is the main model; and the adapter tells nothing of this machine's paths.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(p, dict(task.base.named_parameters())[n]) for n, p in plain.named_parameters())
    stored = json.loads((tmp_path / "out/members/1/adapter_config.json").read_text())
    assert not stored["base_model_name_or_path"]
    assert not list((tmp_path / "out").rglob("*.bin"))
    # Saved over itself, and as another precision.
    again.save(tmp_path / "out")
    assert next(load_task(tmp_path / "out", dtype="bfloat16").model.parameters()).dtype == torch.bfloat16


def test_a_model_of_its_own_is_stored_whole(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    task = two(tiny_model, tiny_tokenizer, "llama", Combination((0.5,), relu=True))
    task.save(tmp_path / "out")
    again = load_task(tmp_path / "out")
    np.testing.assert_allclose(again.score(PAIRS)[0].log_prob, task.score(PAIRS)[0].log_prob, atol=1e-6)  # type: ignore[attr-defined]
    AutoModelForCausalLM.from_pretrained(tmp_path / "out/members/1")


def test_copies_are_independent_and_keep_what_is_shared(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = adapted(tiny_model, tiny_tokenizer)
    twin = task.copy()
    assert isinstance(twin, LogitEnsemble)
    before = task.score(PAIRS)[0].log_prob
    with torch.no_grad():
        for parameter in twin.model.parameters():
            parameter.add_(0.1)
    np.testing.assert_array_equal(task.score(PAIRS)[0].log_prob, before)
    count = len({id(p) for p in task.model.parameters()})
    assert len({id(p) for p in twin.model.parameters()}) == count
    names = [name for name, _ in task.named_parameters()]
    assert len(names) == len(set(names)) == count
    assert {n for n, _ in task.base.named_parameters()} < set(names)


def test_vectors_in_the_place_of_embeddings_are_read_by_every_model(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = two(tiny_model, tiny_tokenizer, "llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    vectors = torch.stack([m.get_input_embeddings().weight[9] for m in task.model.members()])
    with torch.no_grad(), embeddings_at(task.model, torch.tensor([1]), vectors[:1]):
        both = task.model(input_ids=ids).logits
    task.model.others[0].get_input_embeddings().weight.data[6] = vectors[0]
    task.model.main.get_input_embeddings().weight.data[6] = vectors[0]
    with torch.no_grad():
        torch.testing.assert_close(task.model(input_ids=ids).logits, both)


def test_both_models_are_paid_for(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = two(tiny_model, tiny_tokenizer, "llama")
    parts = [CausalLM(member, tiny_tokenizer) for member in task.model.members()]
    for one in (task, *parts):
        one.cost = Cost()
        one.score(PAIRS)
        one.generate(PROMPTS, [3] * 5)
    assert task.cost.flops == pytest.approx(sum(p.cost.flops for p in parts), rel=0.02)
    assert task.cost.forwards == parts[0].cost.forwards


def test_it_trains_like_any_other_model(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = adapted(tiny_model, tiny_tokenizer)
    task.answer_nll(PAIRS).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in task.named_parameters() if "lora_B" in n)
    assert task.model.main.model.layers[2].mlp.up_proj.weight.grad.abs().sum() > 0
    plain = task.score(PAIRS)[0].log_prob
    task.wrap_lora(2, 4.0, 0.0)
    trained = {name for name, p in task.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("main.") and "lora_" in name for name in trained)
    np.testing.assert_allclose(task.score(PAIRS)[0].log_prob, plain, atol=1e-5)
    task.merge_lora()
    np.testing.assert_allclose(task.score(PAIRS)[0].log_prob, plain, atol=1e-5)
    assert all(p.requires_grad for _, p in task.named_parameters())


def test_another_vocabulary_or_number_of_weights_is_refused(tiny_model: Any, tiny_tokenizer: Any) -> None:
    main = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    with pytest.raises(BadInput, match=r"(?s)predicts 64 tokens where the main one predicts 384.*2 for 1 further"):
        LogitEnsemble(main, [tiny_model("llama", vocab=64)[0]], Combination((1.0, 1.0)))


def test_damaged_folders_are_refused_with_the_place(tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    adapted(tiny_model, tiny_tokenizer).save(tmp_path / "out")
    settings = json.loads((tmp_path / "out/expunge.json").read_text())

    def written(**more: Any) -> None:
        (tmp_path / "out/expunge.json").write_text(json.dumps({**settings, **more}))

    written(members=[{"folder": "../elsewhere", "blocks": 1}])
    with pytest.raises(BadInput, match="outside of the folder"):
        load_task(tmp_path / "out")
    written(combination={"weights": [1.0], "unknown": 2})
    with pytest.raises(BadInput, match="does not say how its models are combined"):
        load_task(tmp_path / "out")
    written()
    (tmp_path / "out/members/1/adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(BadInput, match=r"members/1.*cannot be loaded"):
        load_task(tmp_path / "out")
    (tmp_path / "out/members/1/adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"has no adapter_model\.safetensors"):
        load_task(tmp_path / "out")


def test_block_outputs_are_those_of_the_main_model(tiny_model: Any, tiny_tokenizer: Any) -> None:
    task = two(tiny_model, tiny_tokenizer, "llama")
    encoded = task.encoder.encode(PAIRS)
    with torch.no_grad():
        for upto in (True, False):
            found, expected = (m.hidden_states(encoded, [0, 2], upto=upto) for m in (task, task.base))
            for layer in (0, 2):
                torch.testing.assert_close(found[layer], expected[layer])


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shared_beginnings_change_no_score(tiny_model: Any, tiny_tokenizer: Any, family: str) -> None:
    towns = ("Velburg", "Salt Harbour near the sea", "Velmont", "Harrow Bay")
    pairs = [("Where was Mirela Ostrander born?", f"Mirela Ostrander was born in {town}.") for town in towns]
    task = two(tiny_model, tiny_tokenizer, family)
    encoded, texts = task.encoder.encode(pairs), [answer for _, answer in pairs]
    with task.asked():
        apart = score_each(task, encoded, texts, None)
    found = task.score(pairs)
    assert task.takes_trees
    for one, other in zip(found, apart, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-3, atol=1e-3)

    class OfItsOwn(type(task.model.others[0])):  # type: ignore[misc]
        def forward(self, input_ids: Any, attention_mask: Any = None, **more: Any) -> Any:
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, **more)

    # One that makes positions of its own would read the others' tree as one text.
    task.model.others[0].__class__ = OfItsOwn
    task.takes_trees = None
    found = task.score(pairs)
    assert task.takes_trees is False
    for one, other in zip(found, apart, strict=True):
        np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-5, atol=1e-5)
