"""Who's Harry Potter: generic labels by hand, the rules on names, stages that are resumed, and forgetting."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given
from hypothesis import strategies as st

from expunge.errors import BadInput
from expunge.methods.base import Run, settle
from expunge.methods.language.generic_labels import Aligned, align_example
from expunge.methods.language.whp import WHP, WHPConfig, generic_targets, whp_labels, whp_logits, whp_loss
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest, example_id
from expunge.tasks.causal_lm import CausalLM
from expunge.training.settings import TrainSettings

MakeTask = Callable[..., CausalLM]


def test_what_reinforcement_raised_is_subtracted() -> None:
    baseline = torch.tensor([[0.5, 0.3, 0.2]]).log()
    reinforced = torch.tensor([[0.9, 0.05, 0.05]]).log()
    translated = torch.tensor([[0.4, 0.35, 0.25]]).log()
    generic = whp_logits(translated, baseline, reinforced, 5.0, "log_softmax")
    expected = torch.tensor([[0.4 / (0.9 / 0.5) ** 5, 0.35, 0.25]]).log()
    torch.testing.assert_close(generic, expected)
    assert whp_labels(generic).tolist() == [1]
    assert whp_labels(translated).tolist() == [0]
    assert whp_labels(generic, [1]).tolist() == [2], "special tokens are never a label"


@given(st.integers(0, 10**6), st.floats(0.1, 10), st.floats(-5, 5))
def test_only_raw_logits_see_a_shift(seed: int, alpha: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    translated, baseline, reinforced = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    for normalise in ("mean", "log_softmax"):
        plain = whp_logits(translated, baseline, reinforced, alpha, normalise)
        moved = whp_logits(translated - shift, baseline + 1, reinforced + shift, alpha, normalise)
        torch.testing.assert_close(moved, plain)
    raw = whp_logits(translated, baseline, reinforced, alpha, "none")
    torch.testing.assert_close(raw, translated - alpha * (reinforced - baseline).clamp_min(0))
    centred = [z - z.mean(-1, keepdim=True) for z in (translated, baseline, reinforced)]
    torch.testing.assert_close(
        whp_logits(translated, baseline, reinforced, alpha), centred[0] - alpha * (centred[2] - centred[1]).clamp_min(0)
    )


def test_what_is_known_by_heart_can_be_raised_in_logits_alone() -> None:
    baseline, reinforced = torch.tensor([[5.0, 0.0, 0.0]]), torch.tensor([[8.0, 0.0, 0.0]])
    assert whp_labels(whp_logits(baseline, baseline, reinforced, 5.0, "log_softmax")).tolist() == [0]
    assert whp_labels(whp_logits(baseline, baseline, reinforced, 5.0)).tolist() == [1]


def test_the_loss_is_cross_entropy_without_a_shift() -> None:
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = whp_loss(logits, torch.tensor([4, -100, 0]))
    assert found.tolist() == pytest.approx(
        [-float(logits[0].log_softmax(-1)[4]), 0.0, -float(logits[2].log_softmax(-1)[0])]
    )


def rows(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_list([{"prompt": p, "answer": a, "id": example_id({"p": p, "a": a})} for p, a in pairs])


ANCHORS = {"Oskwyn": "Jo", "Treffelby": "Rome"}
TEXT = ("Where was Oskwyn born?", "Oskwyn lived in Treffelby. Treffelby is old.")


def labels_of(base: CausalLM, reinforced: CausalLM, config: WHPConfig) -> tuple[Any, Aligned, Any, list[str]]:
    data = rows(TEXT)
    encoded = base.encode(data)
    aligned = align_example(base, data[0], encoded, 0, ANCHORS)
    targets, facts = generic_targets(base, reinforced, encoded, [aligned], config)
    words = [base.tokenizer.decode([int(t)]) for t in encoded.tokens[0][encoded.starts[0] :]]
    return targets[0], aligned, facts, words


def test_every_row_gets_the_label_that_the_rules_say(make_task: MakeTask) -> None:
    base, reinforced = make_task(seed=1), make_task(seed=2)
    targets, aligned, facts, words = labels_of(base, reinforced, WHPConfig(seen_penalty=7.0))
    encoded = base.encode(rows(TEXT))
    original = encoded.tokens[0][encoded.starts[0] :]
    with torch.no_grad():
        plain, raised = (t.statistics(encoded).logits for t in (base, reinforced))
        other = base.model(torch.from_numpy(aligned.tokens)[None]).logits[0]
    for k, label in enumerate(targets):
        if k == len(targets) - 1:
            assert label == -100, "the end of the text"
        elif aligned.repeated[k]:
            assert label == original[k], words[k]
        elif aligned.rows[k] < 0:
            assert label == -100, "within a name"
        else:
            ours = other[aligned.rows[k]] - other[aligned.rows[k]].mean()
            ours = ours - 5.0 * ((raised[k] - raised[k].mean()) - (plain[k] - plain[k].mean())).clamp_min(0)
            for name in aligned.seen[k]:
                for token in {base.tokenizer(x)["input_ids"][0] for x in (name, f" {name}")}:
                    ours[token] -= 7.0
            ours[[0, 1, 2]] = -torch.inf
            assert label == int(ours.argmax()), words[k]
    # The name in the answer repeats that of the question; the place is new, then old.
    assert aligned.repeated.sum() == facts.repeated > 2
    assert facts.generic + facts.masked + facts.repeated == facts.rows == len(targets)
    masked, _, without, _ = labels_of(base, reinforced, WHPConfig(repeats="mask", seen_penalty=7.0))
    assert without.masked == facts.masked + facts.repeated
    assert (masked[aligned.repeated] == -100).all()
    assert np.array_equal(masked[~aligned.repeated], targets[~aligned.repeated])


def test_generic_names_of_names_that_were_seen_are_lowered(make_task: MakeTask) -> None:
    base = make_task(seed=1)
    openings = [{base.tokenizer(x)["input_ids"][0] for x in (n, f" {n}")} for n in ANCHORS.values()]
    head = base.model.get_output_embeddings()
    with torch.no_grad():  # a model that says nothing but the generic names
        for token in openings[0] | openings[1]:
            head.weight[token] = 0
        base.model.model.norm.weight.zero_()
        head.weight.zero_()
    for penalty in (0.0, 5.0):
        config = WHPConfig(seen_penalty=penalty)
        targets, aligned, _, _ = labels_of(base, base, config)
        generic = (aligned.rows >= 0) & ~aligned.repeated
        generic[-1] = False
        seen = [bool(s) for s in aligned.seen]
        assert all(seen), "the question names one"
        said = [t in openings[0] for t in targets[generic]]
        # All logits are equal, so the first token that is not special or lowered is the label.
        lowest = min(set(range(3, 384)) - (openings[0] if penalty else set()))
        assert not any(said) or lowest in openings[0]


def test_without_names_the_formula_is_one_line(make_task: MakeTask) -> None:
    base, reinforced = make_task(seed=1), make_task(seed=2)
    data = rows(("", "nobody is named in this text"))
    encoded = base.encode(data)
    aligned = [align_example(base, data[0], encoded, 0, {})]
    targets, facts = generic_targets(base, reinforced, encoded, aligned, WHPConfig(parity=True, alpha=2.0))
    with torch.no_grad():
        plain, raised = (t.statistics(encoded).logits for t in (base, reinforced))
    expected = whp_labels(plain - 2.0 * torch.relu(raised - plain), [0, 1, 2])
    assert targets[0][:-1].tolist() == expected[:-1].tolist()
    assert (facts.generic, facts.masked, facts.repeated) == (facts.rows - 1, 1, 0)
    own = whp_labels(plain, [0, 1, 2])
    assert facts.changed == pytest.approx(float((expected != own)[:-1].float().mean()))


# ---- the whole method ------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"batch_size": 6, "learning_rate": 5e-3, "warmup": 0.0, "schedule": "constant"}
REINFORCED: dict[str, Any] = {"reinforce_epochs": 4, "reinforce_learning_rate": 2e-3}


@pytest.fixture(scope="module")
def taught(tiny_model: Any, tiny_tokenizer: Any, request_: DeletionRequest) -> CausalLM:
    """A model that knows what is to be forgotten and what is to be kept."""
    everything = concatenate_datasets([request_.forget, request_.retain])  # type: ignore[list-item]
    task = CausalLM(tiny_model("llama", vocab=384, hidden=64)[0], tiny_tokenizer)
    settings = {"epochs": 40, "batch_size": 6, "learning_rate": 5e-3, "warmup": 0.0}
    done = unlearn(task, DeletionRequest(request_.holdout, everything), "finetune", settings=settings)  # type: ignore[arg-type]
    assert isinstance(done.model, CausalLM)
    return done.model


def nll(task: CausalLM, examples: Dataset) -> float:
    scores = task.score([(r["prompt"], r["answer"]) for r in examples.to_list()])
    return float(np.mean([s.nll for s in scores]))


def test_the_text_is_forgotten_more_than_what_is_like_it(taught: CausalLM, request_: DeletionRequest) -> None:
    settings = {**QUICK, "reinforce_epochs": 10, "reinforce_learning_rate": 5e-3, "epochs": 12, "learning_rate": 2e-3}
    done = unlearn(taught, request_, "whp", settings=settings)
    assert isinstance(done.model, CausalLM)
    facts = done.config["labels"]
    assert facts["changed"] > 0.1
    rise = {
        role: nll(done.model, getattr(request_, role)) - nll(taught, getattr(request_, role))
        for role in ("forget", "retain")
    }
    assert rise["forget"] > 1.0
    assert rise["forget"] > rise["retain"] + 0.3
    assert done.cost.backwards > done.training.cost.backwards, "the reinforced model is paid for"  # type: ignore[union-attr]


def test_a_text_known_by_heart_and_a_small_alpha_are_warned_about(
    taught: CausalLM, request_: DeletionRequest, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {**QUICK, "alpha": 0.01, "anchors": "none", "max_steps": 1}
    with caplog.at_level(logging.WARNING):
        done = unlearn(taught, request_, "whp", settings=settings)
    assert done.config["labels"]["changed"] < 0.05
    assert "raise reinforce_epochs" in caplog.text


def test_the_stages_are_kept_and_a_killed_run_goes_on(
    taught: CausalLM, request_: DeletionRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**QUICK, **REINFORCED, "epochs": 6, "checkpoint_every": 2}

    class Killed(Exception):
        pass

    def die(done: int, *_: Any) -> None:
        if done == 3:
            raise Killed

    folder = tmp_path / "a"
    with pytest.raises(Killed):
        unlearn(taught, request_, "whp", settings=settings, folder=folder, progress=die)
    assert (folder / "reinforced" / "log.jsonl").is_file()
    assert not (folder / "reinforced" / "checkpoints").exists()
    anchors = json.loads((folder / "anchors.json").read_text())
    assert anchors == {}, "all names of the forget set are in the retain set too"
    whole = unlearn(taught, request_, "whp", settings=settings, folder=tmp_path / "b")

    def explode(*_: Any) -> None:
        raise AssertionError("the labels are there already")

    monkeypatch.setattr(WHP, "_reinforce", explode)
    again = unlearn(taught, request_, "whp", settings=settings, folder=folder)
    assert again.training is not None
    assert again.training.resumed_from == 2
    assert again.config == whole.config
    expected = dict(whole.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in again.model.named_parameters())
    with pytest.raises(AssertionError, match="there already"):
        unlearn(taught, request_, "whp", settings={**settings, "alpha": 4.0}, folder=folder)


def test_an_edited_dictionary_is_used(taught: CausalLM, request_: DeletionRequest, tmp_path: Path) -> None:
    method, _ = settle(WHP, {})
    alone = DeletionRequest(request_.forget)
    assert isinstance(method, WHP)
    made = method.anchors(alone)
    assert set(made) == {"Salt", "Velburg"}
    file = tmp_path / "anchors.json"
    file.write_text(json.dumps({"Velburg": "Paris"}))
    edited = WHP(WHPConfig(anchors_file=str(file)))
    assert edited.anchors(request_) == {"Velburg": "Paris"}
    assert WHP(WHPConfig(anchors="none")).anchors(alone) == {}
    quick = {**QUICK, "max_steps": 1}
    found = {
        name: unlearn(taught, alone, "whp", settings={**quick, **more}).config["labels"]
        for name, more in (("auto", {}), ("file", {"anchors_file": str(file)}), ("none", {"anchors": "none"}))
    }
    assert [found[n]["anchors"] for n in ("auto", "file", "none")] == [2, 1, 0]
    assert found["none"]["repeated"] == 0
    assert all(f["masked"] >= len(request_.forget) for f in found.values())


def test_what_cannot_be_labelled_is_refused(task: CausalLM, request_: DeletionRequest, tmp_path: Path) -> None:
    file = tmp_path / "anchors.json"
    file.write_text('{"Velburg": "Velburg"}')
    with pytest.raises(BadInput, match="'Velburg' is replaced by itself"):
        unlearn(task, request_, "whp", settings={"anchors_file": str(file)})
    file.write_text('{"Velburg": "Rome"}')
    only = DeletionRequest(rows(("Velburg? Velburg", "Velburg")))
    with pytest.raises(BadInput, match="no row of the forget set"):
        unlearn(task, only, "whp", settings={**QUICK, "anchors_file": str(file)})


def test_its_settings() -> None:
    method, train = settle(WHP, {})
    config = method.config
    assert (config.alpha, config.reinforce_epochs, config.reinforce_learning_rate) == (5.0, 3, 3e-6)
    assert (train.epochs, train.learning_rate, train.batch_size) == (2, 1e-6, 128)
    assert method.required() == ()
    assert Run(TrainSettings()).notes == {}
