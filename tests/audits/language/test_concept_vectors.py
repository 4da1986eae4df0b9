"""The concept-vector audit on a model that keeps concepts, on edited copies of it, and where there is nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from expunge.audits.base import Evidence, Finding
from expunge.audits.concepts import as_record, requested_concepts
from expunge.audits.language.concept_vectors import ConceptVectors, _evidence, distinct_rouge_l, sentence_bleu
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.data.concept_vectors import read_concepts, write_concepts
from expunge.data.fictitious import FictitiousWorld
from expunge.data.tokenizer import small_tokenizer
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest
from expunge.selections.localisation import Candidate, damage
from expunge.tasks.causal_lm import CausalLM
from expunge.tasks.feed_forward import Place, value_matrices
from expunge.training.from_scratch import Shape, small_llama, train_small_llama
from expunge.training.settings import TrainSettings


@pytest.fixture(scope="module")
def request_() -> DeletionRequest:
    """Two people to be forgotten, four facts each."""
    return FictitiousWorld(20, 0, ("birth_city", "profession", "pet", "instrument")).split(forget=0.1, holdout=0.1)


@pytest.fixture(scope="module")
def original(request_: DeletionRequest) -> CausalLM:
    """A model that knows everybody."""
    texts = [f"{row['prompt']} {row['answer']}" for rows in request_.sets().values() for row in rows.to_list()]
    settings = TrainSettings(**TRAINING)
    known = [request_.forget, request_.retain]
    return train_small_llama(known, small_tokenizer(texts, 512), SHAPE, settings)[0]  # type: ignore[arg-type]


TRAINING: dict[str, Any] = {
    "epochs": 40, "batch_size": 16, "learning_rate": 5e-3, "warmup": 0.1, "schedule": "cosine", "weight_decay": 0.0,
}  # fmt: skip
SHAPE = Shape(hidden=96, layers=2, heads=4)
SETTINGS = {"vectors": 8, "unrelated": 8, "level": 0.01, "strengths": (4.0,)}


def audit(unlearned: CausalLM, original: CausalLM, request: DeletionRequest, **settings: Any) -> Finding:
    made = ConceptVectors(ConceptVectors.Config(**{**SETTINGS, **settings}))
    return run_one(made, Observations({"unlearned": unlearned, "original": original}, request, max_new_tokens=16))


def value(finding: Finding, scalar: str, model: str = "unlearned") -> float:
    found = finding.estimates[model][scalar].value
    assert found is not None, finding.estimates[model][scalar].note
    return found


def places(finding: Finding) -> list[Place]:
    """Read the located places back from the tables."""
    out = []
    for table in finding.tables[1:]:
        for row in table.rows:
            words = row[0].removesuffix(", negated").split()
            out.append(Place(int(words[1].strip(",")), int(words[3])))
    return out


@pytest.fixture(scope="module")
def untouched(original: CausalLM, request_: DeletionRequest) -> Finding:
    return audit(original.copy(), original, request_)


def test_a_trace_is_found_and_an_untouched_model_keeps_it(untouched: Finding) -> None:
    assert untouched.status == "measured", untouched.note
    assert value(untouched, "located") == 1.0, untouched.tables[0].rows
    for scalar in ("jaccard", "jaccard_same_head", "cosine", "matched_cosine", "rouge_target", "bleu_target"):
        assert value(untouched, scalar) == pytest.approx(1.0, abs=1e-5), scalar
    assert value(untouched, "l2") == 0
    assert value(untouched, "damage_target") > 2 * value(untouched, "damage_unrelated")
    assert value(untouched, "anew_score") == value(untouched, "anew_score", "original")
    assert len(untouched.tables) == 3
    assert {row[-1] for row in untouched.tables[0].rows} == {"trace found"}


def test_vectors_that_were_overwritten_are_seen(
    untouched: Finding, original: CausalLM, request_: DeletionRequest
) -> None:
    edited = original.copy()
    damage(value_matrices(edited.model), places(untouched), 8.0, seed=5)
    finding = audit(edited, original, request_)
    assert value(finding, "jaccard") < 0.5
    assert value(finding, "cosine") < 0.5
    assert value(finding, "l2") > 3
    assert value(finding, "random_jaccard") == 1.0
    # Damage to the trace is all that was done, so the original's vectors undo it.
    assert value(finding, "graft_target") > 0.02
    assert value(finding, "graft_random") == 0.0
    assert finding.estimates["original"]["graft_target"].value is None
    assert value(finding, "anew_score") < value(finding, "anew_score", "original")


def test_a_permutation_of_units_hides_nothing(
    untouched: Finding, original: CausalLM, request_: DeletionRequest
) -> None:
    turned = original.copy()
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for layer in turned.model.model.layers:
            layer.mlp.gate_proj.weight.copy_(layer.mlp.gate_proj.weight[order])
            layer.mlp.up_proj.weight.copy_(layer.mlp.up_proj.weight[order])
            layer.mlp.down_proj.weight.copy_(layer.mlp.down_proj.weight[:, order])
    finding = audit(turned, original, request_)
    assert value(finding, "rouge_target") == 1.0, "the model says the same"
    assert value(finding, "cosine") < 0.5, "looking at the same places is fooled"
    assert value(finding, "matched_cosine") == pytest.approx(1.0, abs=1e-5)
    assert value(finding, "anew_score") == pytest.approx(value(finding, "anew_score", "original"), rel=1e-4)


def test_no_trace_is_no_removal(original: CausalLM, request_: DeletionRequest) -> None:
    finding = audit(original.fresh(3), original.fresh(4), request_)
    assert finding.status == "measured"
    assert value(finding, "located") == 0
    assert "no sign of removal" in finding.note
    for scalar in ("jaccard", "cosine", "damage_target"):
        estimate = finding.estimates["unlearned"][scalar]
        assert estimate.value is None
        assert "nothing to compare" in estimate.note
    assert len(finding.tables) == 1


def test_another_architecture_has_no_such_places(original: CausalLM, request_: DeletionRequest) -> None:
    other = small_llama(original.tokenizer, Shape(hidden=32, layers=2, heads=4), seed=0)
    finding = audit(other, original, request_)
    assert value(finding, "cosine", "original") == pytest.approx(1.0)
    assert finding.estimates["unlearned"]["cosine"].value is None
    assert "another architecture" in finding.estimates["unlearned"]["cosine"].note
    assert value(finding, "anew_score") < value(finding, "anew_score", "original")


def test_a_published_file_names_the_places(
    untouched: Finding, original: CausalLM, request_: DeletionRequest, tmp_path: Path
) -> None:
    seen = Observations({"unlearned": original, "original": original}, request_, max_new_tokens=16)
    concept = requested_concepts(seen, 1, 6)[0]
    candidates = [Candidate(p, 1, 3.0, 0.0, 0.1, 0.2, 2.0, ()) for p in places(untouched)[:2]]
    write_concepts(tmp_path / "c.json", [as_record(concept, candidates)])
    assert read_concepts(tmp_path / "c.json")[0].vectors == tuple((*p,) for p in places(untouched)[:2])
    finding = audit(original, original, request_, concepts=tmp_path / "c.json", max_new_tokens=16)
    assert finding.status == "measured", finding.note
    assert finding.attempted["concepts"] == [concept.name]
    assert value(finding, "bleu_unrelated") == pytest.approx(1.0)
    with pytest.raises(ValueError, match="has no vector"):
        as_record(concept, [])


def test_a_file_that_is_wrong_is_refused_before_work(original: CausalLM, request_: DeletionRequest) -> None:
    made = ConceptVectors(ConceptVectors.Config(concepts=Path("none.json")))
    with pytest.raises(BadInput, match="cannot be read"):
        made.prepare(Observations({"unlearned": original, "original": original}, request_))


def test_models_that_cannot_be_opened_are_no_data(
    original: CausalLM, request_: DeletionRequest, scripted: type
) -> None:
    finding = audit(scripted(), original, request_)
    assert finding.status == "no data"
    assert "'unlearned' (Scripted) offers no weights" in finding.note
    finding = audit(original, original, request_, modules="mlp.nothing")
    assert finding.status == "no data"
    assert "called 'mlp.nothing'" in finding.note


def test_a_judge_may_refuse_everything(original: CausalLM, request_: DeletionRequest) -> None:
    made = ConceptVectors(ConceptVectors.Config(**SETTINGS))
    made.judge = lambda name, tokens: 0.0
    finding = run_one(made, Observations({"unlearned": original, "original": original}, request_, max_new_tokens=16))
    assert value(finding, "located") == 0


def test_bleu_is_that_of_words_in_order() -> None:
    assert sentence_bleu("a b c d e", "a b c d e") == pytest.approx(1.0)
    # Short and right: exp(1 - 8/4) times precisions of 1.
    assert sentence_bleu("a b c d", "a b c d e f g h") == pytest.approx(0.367879, abs=1e-5)
    assert sentence_bleu("a b c d", "a b c d e f g h", parity=True) == pytest.approx(
        sentence_bleu("a b c d e f g h", "a b c d")
    )
    assert sentence_bleu("", "a") == 0
    assert sentence_bleu("x y z", "a b c d") == 0


def test_the_rouge_of_the_released_code_counts_distinct_words() -> None:
    # Three different words against four, of which the subsequence "a b" is common: precision 2/3, recall 1/2.
    assert distinct_rouge_l("a a a b x", "a b c d") == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    # "b a" and "a b" have one word in order; as two sentences each they have both, in any order.
    assert distinct_rouge_l("b a", "a b") == pytest.approx(1 / 2)
    assert distinct_rouge_l("b. a", "a. b") == pytest.approx(1.0)
    # Where two subsequences are equally long, the one that is found keeps "b": it drops words of the second first.
    assert distinct_rouge_l("a b", "b a") == pytest.approx(1 / 2)
    assert distinct_rouge_l("a b. a", "b a") == pytest.approx(1.0)
    assert distinct_rouge_l("A.5 m", "5 m") == pytest.approx(2 * (2 / 3) / (2 / 3 + 1)), "a full stop inside a number"
    assert distinct_rouge_l("", "a") == distinct_rouge_l("...", "a") == distinct_rouge_l("x", "y") == 0


def test_the_verdict_gets_the_trace_beside_oracles_and_from_enough_concepts() -> None:
    def kept(share: float, concepts: int, other: str = "") -> Any:
        numbers = {"jaccard": {f"c{k}": [share, share + 0.1] for k in range(concepts)}}
        return SimpleNamespace(numbers=numbers, other=other)

    def offered(concepts: int = 8, oracles: tuple[str, ...] = ("oracle",), other: str = "") -> list[Evidence]:
        measured = {
            "unlearned": kept(0.8, concepts, other),
            "original": kept(0.9, concepts),
            "oracle": kept(0, concepts),
        }
        return _evidence(SimpleNamespace(oracles=oracles, models=measured), measured)  # type: ignore[arg-type]

    (found,) = offered()
    assert (found.statistic, found.about, found.knowing_is) == ("trace_jaccard", "forget", "high")
    assert found.values["unlearned"]["c3"] == pytest.approx(0.85)
    assert offered(7) == []
    assert offered(oracles=()) == []
    assert offered(other="another architecture") == []
