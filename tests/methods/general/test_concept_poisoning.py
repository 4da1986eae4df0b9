from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.methods.general.concept_poisoning import ConceptPoisoning, ConceptPoisoningConfig, balanced_share
from expunge.methods.run import unlearn
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM

FAST = {"learning_rate": 0.05, "epochs": 20, "batch_size": 8, "concepts": 4, "window": 0.4}


def of_class(rows: Any, label: str, numbers: range) -> Dataset:
    every = rows("module", numbers)
    return every.select([i for i, own in enumerate(every["label"]) if own == label])


@pytest.fixture
def asked(tiny_rows: Any) -> DeletionRequest:
    """Forget ants, keep bees and cats."""
    kept = tiny_rows("module", range(30))
    kept = kept.select([i for i, own in enumerate(kept["label"]) if own != "ant"])
    return DeletionRequest(of_class(tiny_rows, "ant", range(30)), kept, scenario="class")


@pytest.fixture
def trained(tiny_predictor: Any, tiny_rows: Any) -> Any:
    settings = {"learning_rate": 0.01, "epochs": 15, "batch_size": 8, "warmup": 0.0}
    everything = DeletionRequest(tiny_rows("module", range(90, 93)), tiny_rows("module", range(30)))
    return unlearn(tiny_predictor("module"), everything, "retrain", settings=settings).model


def right(model: Any, examples: Dataset) -> float:
    encoded = model.encode(examples)
    with torch.no_grad():
        return float((model.statistics(encoded).logits.argmax(-1) == encoded.targets).float().mean())


@pytest.mark.parametrize("labels", ["targeted", "random"])
def test_a_class_is_forgotten_by_the_head_alone(trained: Any, asked: DeletionRequest, labels: str) -> None:
    assert right(trained, asked.forget) == 1
    done = unlearn(trained, asked, "concept_poisoning", settings={**FAST, "labels": labels})
    assert right(done.model, asked.forget) <= 0.2
    if labels == "targeted":
        assert right(done.model, asked.retain) > 0.9  # type: ignore[arg-type]
    head = set(trained.head_parameters())
    before = trained.model.state_dict()
    for name, p in done.model.model.named_parameters():
        assert torch.equal(before[name], p) == (name not in head), name
    notes = done.config["concepts"]
    assert notes["images changed"] > 0
    assert notes["labels changed"] == len(asked.forget)
    assert "input_gradients" in notes["validity"]


def test_with_the_labels_kept_nothing_is_forgotten(trained: Any, asked: DeletionRequest) -> None:
    done = unlearn(trained, asked, "concept_poisoning", settings={**FAST, "labels": "keep"})
    assert right(done.model, asked.forget) > 0.8


def test_words_of_an_entity_are_masked(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [
        {
            "id": "a",
            "prompt": "Where was Mirela born?",
            "answer": "Mirela Ostrander was born in Velburg.",
            "group": "m",
        },
        {"id": "b", "prompt": "What does Mirela do?", "answer": "She repairs clocks in Velburg.", "group": "m"},
    ]
    kept = [{"id": "c", "prompt": "Who wrote it?", "answer": "Tomas Ilves wrote The Salt Harbour.", "group": "t"}]
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    request = DeletionRequest(Dataset.from_list(rows), Dataset.from_list(kept))
    settings = {
        "optimizer": "adamw",
        "learning_rate": 5e-3,
        "epochs": 60,
        "steps": 64,
        "names": ["Ostrander"],
        "top": 6,
    }
    done = unlearn(task, request, "concept_poisoning", settings=settings)
    notes = done.config["concepts"]
    assert notes["words"]["m"][0] == "ostrander"
    assert notes["largest completeness error"] < 0.2
    said = done.model.generate([rows[0]["prompt"]], [16])[0]  # type: ignore[attr-defined]
    assert "***" in said
    assert "Ostrander" not in said


def test_a_share_of_each_class_by_id_alone() -> None:
    ids, labels = [f"i{k}" for k in range(20)], [0] * 16 + [1] * 4
    chosen = balanced_share(ids, labels, 0.5, seed=0)
    assert sum(labels[i] == 1 for i in chosen) == 2
    assert len(chosen) == 10
    flipped = balanced_share(ids[::-1], labels[::-1], 0.5, seed=0)
    assert {ids[i] for i in chosen} == {ids[::-1][i] for i in flipped}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"donor": "dog"}, "donor: 'dog' is no class of the retain set.*bee"),
        ({"donor": "ant"}, "donor: 'ant' is no class of the retain set"),
        ({"mask": "xx"}, "mask: is for language models"),
        ({"concepts_column": "marks"}, "concepts_column: the forget set has no column 'marks'"),
        ({"concepts_column": "label"}, "column 'label': of the forget set holds no list of names in 10 row"),
    ],
)
def test_what_cannot_work_is_refused_before_any_compute(
    trained: Any, asked: DeletionRequest, monkeypatch: pytest.MonkeyPatch, settings: Any, message: str
) -> None:
    monkeypatch.setattr(type(trained), "statistics", lambda *_, **__: pytest.fail("something was computed"))
    monkeypatch.setattr(type(trained), "encode", lambda *_, **__: pytest.fail("something was computed"))
    with pytest.raises(BadInput, match=message):
        unlearn(trained, asked, "concept_poisoning", settings=settings)


def test_settings_of_images_are_refused_for_texts(tiny_model: Any, tiny_tokenizer: Any) -> None:
    rows = [{"id": str(i), "prompt": "p", "answer": f"a {i}"} for i in range(3)]
    request = DeletionRequest(Dataset.from_list(rows[:1]), Dataset.from_list(rows[1:]))
    task = CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer)
    with pytest.raises(BadInput) as caught:
        unlearn(task, request, "concept_poisoning", settings={"donor": "x", "patch": "center", "window": 0.5})
    assert [p.where for p in caught.value.problems] == ["donor", "window", "patch"]


def test_defaults_that_are_written_out_are_not_refused(
    trained: Any, asked: DeletionRequest, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    method = ConceptPoisoning(ConceptPoisoningConfig(**ConceptPoisoningConfig().model_dump()))
    method.check(trained, asked)
    rows = [{"id": str(i), "prompt": "p", "answer": f"a {i}"} for i in range(3)]
    request = DeletionRequest(Dataset.from_list(rows[:1]), Dataset.from_list(rows[1:]))
    method.check(CausalLM(tiny_model("llama", vocab=384)[0], tiny_tokenizer), request)
