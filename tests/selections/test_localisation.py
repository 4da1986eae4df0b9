"""Locating a concept: attribution against a plain computation, a planted trace found first, damage undone bitwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.errors import BadInput
from expunge.selections.localisation import (
    LocateSettings,
    attributions,
    concept_tokens,
    damage,
    damaged,
    locate,
    output_head,
    replaced,
    restore,
)
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.encoding import collate
from expunge.tasks.feed_forward import Place, value_matrices

PAIRS = [("Where was Mirela born?", "in Velburg."), ("Who wrote The Salt Harbour?", "Tomas Ilves."), ("Why?", "no.")]


@pytest.fixture
def make_lm(tiny_model: Any, tiny_tokenizer: Any) -> Any:
    return lambda family="llama", **more: CausalLM(tiny_model(family, vocab=384, **more)[0], tiny_tokenizer)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_attribution_is_activation_times_projection(make_lm: Any, family: str) -> None:
    task = make_lm(family)
    matrices, head = value_matrices(task.model), output_head(task)
    batch = collate(task.encoder.encode(PAIRS), task.encoder.pad_id, task.device)
    inputs: dict[int, torch.Tensor] = {}
    handles = [
        m.carrier.register_forward_hook(lambda _, args, __, k=k: inputs.update({k: args[0].detach()}))
        for k, m in enumerate(matrices)
    ]
    with torch.no_grad():
        task.model(input_ids=batch.input_ids)
    for handle in handles:
        handle.remove()
    directions = head.weight[batch.targets] - head.weight.mean(0)
    found = attributions(task, matrices, PAIRS, head)
    for k, m in enumerate(matrices):
        activations = inputs[k].reshape(-1, inputs[k].shape[-1])[batch.rows]
        expected = (activations * (directions @ m.vectors.T)).mean(0)
        torch.testing.assert_close(found[k], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["mixtral", "gemma2", "olmo2"])
def test_attribution_is_the_first_order_effect_of_a_unit(make_lm: Any, family: str) -> None:
    """Of the last block: scaling a unit's vector by 1 + h moves <output, direction> by h times its attribution."""
    task = make_lm(family)
    step = 0.01
    if family == "mixtral":
        step = 0.5  # its fused experts know no float64; without a norm behind them the effect is linear anyway
    else:
        task.model.double()
    matrices, head = value_matrices(task.model), output_head(task)
    found = attributions(task, matrices, PAIRS, head)
    batch = collate(task.encoder.encode(PAIRS), task.encoder.pad_id, task.device)
    directions = head.weight[batch.targets] - head.weight.mean(0)

    def written() -> float:
        kept: list[torch.Tensor] = []
        block = task.model.model.layers[-1]
        handle = block.register_forward_hook(
            lambda _, __, out: kept.append((out[0] if isinstance(out, tuple) else out).detach())
        )
        with torch.no_grad():
            task.model(input_ids=batch.input_ids)
        handle.remove()
        return float((kept[0].reshape(-1, 32)[batch.rows].double() * directions.double()).sum() / len(batch.rows))

    last = [k for k, m in enumerate(matrices) if m.layer == 1]
    k = max(last, key=lambda k: float(found[k].abs().max()))
    unit = int(found[k].abs().argmax())
    start, vector = matrices[k].vectors[unit].clone(), matrices[k].vectors[unit]
    values = []
    for h in (step, -step):
        vector.copy_(start * (1 + h))
        values.append(written())
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(float(found[k][unit]), rel=0.02)


def test_attribution_leaves_no_trace(make_lm: Any) -> None:
    task = make_lm("mixtral")
    task.model.requires_grad_(False)
    before = {n: v.clone() for n, v in task.model.state_dict().items()}
    attributions(task, value_matrices(task.model), PAIRS, output_head(task))
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in task.model.parameters())
    assert not any(m._forward_hooks for m in task.model.modules())
    assert attributions(task, value_matrices(task.model), [], output_head(task))[0].tolist() == [0.0] * 64


def plant(task: CausalLM, place: Place, tokens: list[int], sign: float = 1.0) -> None:
    """Let one value vector point at the embeddings of some tokens."""
    matrix = next(m for m in value_matrices(task.model) if m.layer == place.layer)
    head = task.model.get_output_embeddings().weight.detach()
    direction = head[tokens].mean(0) - head.mean(0)
    matrix.vectors[place.dim].copy_(sign * direction * matrix.vectors.norm(dim=-1).mean() / direction.norm())


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_a_planted_trace_comes_first(make_lm: Any, family: str, sign: int) -> None:
    task = make_lm(family)
    tokens = [301, 302, 303, 304, 305, 306]
    plant(task, Place(1, 11), tokens, sign)
    found = locate(task, value_matrices(task.model), tokens, LocateSettings(vectors=4, top_k=20))
    best = found.candidates[0]
    assert (best.place, best.sign) == (Place(1, 11), sign)
    assert best.null_p == 0
    assert best.score == pytest.approx(found.best_score, rel=1e-5)
    assert found.best_score > found.null_best
    assert best.overlap >= 3 / 20
    assert best.enrichment > 2
    assert len(best.tokens) == 20


def test_nothing_planted_passes_about_as_often_as_the_level_says(make_lm: Any) -> None:
    passed = searched = 0
    for seed in range(6):
        task = make_lm("llama", seed=seed)
        found = locate(task, value_matrices(task.model), [7, 70, 170, 270], LocateSettings(level=0.02))
        passed, searched = passed + found.passed, searched + found.searched
    assert searched == 6 * 128
    assert passed / searched < 0.06


def test_what_adds_nothing_to_the_answers_is_no_candidate(make_lm: Any) -> None:
    task, tokens = make_lm(), [301, 302, 303, 304, 305, 306]
    matrices = value_matrices(task.model)
    for dim in (3, 11):
        plant(task, Place(1, dim), tokens)
    asked = [torch.full((64,), -1.0), torch.full((64,), -1.0)]
    asked[1][3] = 0.5
    found = locate(task, matrices, tokens, LocateSettings(vectors=4, top_k=20), asked=asked)
    assert [c.place for c in found.candidates] == [Place(1, 3)]
    assert found.candidates[0].attribution == 0.5


def test_a_judge_has_the_last_word(make_lm: Any) -> None:
    task, tokens = make_lm(), [301, 302, 303, 304, 305, 306]
    for dim in (3, 11):
        plant(task, Place(1, dim), tokens)
    heard = []

    def judge(name: str, shown: Any) -> float:
        heard.append((name, len(shown)))
        return 0.9 if len(heard) == 2 else 0.2

    found = locate(
        task, value_matrices(task.model), tokens, LocateSettings(vectors=2, top_k=20), name="Velburg", judge=judge
    )
    assert [c.rating for c in found.candidates] == [0.9]
    assert heard[0] == ("Velburg", 20)


def test_concept_tokens_are_words_that_others_lack(make_lm: Any) -> None:
    task = make_lm()
    texts = [f"Mirela went to Velburg in {year}." for year in range(1960, 1980)]
    other = [f"Tomas went to Harrow Bay in {year}." for year in range(1960, 1980)]
    words = [task.tokenizer.decode([t]) for t in concept_tokens(task, texts, other)]
    assert any("Velburg" in w or "Vel" in w for w in words)
    assert not any(w.strip() in ("went", "in", "Tomas") for w in words)
    with pytest.raises(BadInput, match="no token occurs"):
        concept_tokens(task, texts, texts)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_damage_is_of_the_stated_size_there_and_nowhere_else(make_lm: Any, family: str) -> None:
    task = make_lm(family)
    matrices = value_matrices(task.model)
    places = [matrices[0].place(5), matrices[-1].place(9)]
    before = {n: v.clone() for n, v in task.model.state_dict().items()}
    old = [matrices[0].vectors[5].clone(), matrices[-1].vectors[9].clone()]
    with damaged(matrices, places, 2.0, seed=1):
        new = [matrices[0].vectors[5].clone(), matrices[-1].vectors[9].clone()]
        changed = sum(int((v != before[n]).sum()) for n, v in task.model.state_dict().items())
        assert changed == 64
    for a, b in zip(old, new, strict=True):
        assert 1.2 < float((a - b).norm() / a.norm()) < 2.8
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())
    kept = damage(matrices, places, 2.0, seed=1)
    assert torch.equal(matrices[0].vectors[5], new[0]), "the noise follows from seed and place"
    restore(matrices, kept)
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())


def test_other_vectors_stand_in_for_a_while(make_lm: Any) -> None:
    task, other = make_lm("gpt2"), make_lm("gpt2", seed=1)
    matrices, theirs = value_matrices(task.model), value_matrices(other.model)
    before = {n: v.clone() for n, v in task.model.state_dict().items()}
    with replaced(matrices, {Place(1, 3): theirs[1].vectors[3]}):
        assert torch.equal(matrices[1].vectors[3], theirs[1].vectors[3])
        assert sum(not torch.equal(before[n], v) for n, v in task.model.state_dict().items()) == 1
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())


def test_damage_is_undone_after_an_error(make_lm: Any) -> None:
    task = make_lm()
    matrices = value_matrices(task.model)
    before = matrices[0].vectors.clone()
    with pytest.raises(RuntimeError), damaged(matrices, [Place(0, 1)], 1.0, 0):
        raise RuntimeError
    assert torch.equal(matrices[0].vectors, before)
