from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset

from expunge.audits.language.model_utility import ModelUtility
from expunge.audits.observations import Observations
from expunge.audits.suite import run_audits, run_one
from expunge.errors import BadInput
from expunge.requests.request import DeletionRequest, example_id


def world(n: int, name: str) -> Dataset:
    rows = []
    for k in range(n):
        row = {"prompt": f"{name} {k}?", "answer": f"right {name} {k}"}
        rows.append({"id": example_id(row), **row, "perturbed_answers": [f"wrong {name} {k} a", f"wrong {name} {k} b"]})
    return Dataset.from_list(rows)


def test_nine_numbers_by_hand(scripted: Callable, request_: DeletionRequest) -> None:
    """NLL of all answers ln 2 and of all wrong answers ln 4 per token, every generation right.

    retain: p = 1/2, ROUGE 1, truth ratio 1 - (1/4) / (1/2) = 1/2.
    authors and facts: p = (1/2) / (1/2 + 1/4 + 1/4) = 1/2, ROUGE 1, truth ratio 1/2.
    Harmonic mean of six halves and three ones: 9 / (6 * 2 + 3) = 0.6.
    """
    extra = {"real_authors": world(5, "author"), "world_facts": world(4, "fact")}
    everything = [*request_.retain.to_list(), *(r for examples in extra.values() for r in examples.to_list())]
    nll = {w: math.log(4) for row in everything for w in row["perturbed_answers"]}
    nll |= {row[c]: math.log(2) for row in everything for c in ("answer", "paraphrased_answer") if row.get(c)}
    model = scripted(nll, {row["prompt"]: row["answer"] for row in everything})
    finding = run_one(ModelUtility(), Observations({"unlearned": model}, request_, extra=extra))
    assert finding.status == "measured", finding.note
    estimates = finding.estimates["unlearned"]
    assert estimates["utility"].value == pytest.approx(0.6)
    for role in ("retain", "real_authors", "world_facts"):
        assert estimates[f"{role}_probability"].value == pytest.approx(0.5)
        assert estimates[f"{role}_rouge_recall"].value == pytest.approx(1.0)
        assert estimates[f"{role}_truth_ratio"].value == pytest.approx(0.5)
    assert finding.note == ""
    assert len(finding.scalars) == 10


def test_what_is_missing_is_named_and_not_replaced(scripted: Callable, request_: DeletionRequest) -> None:
    finding = run_one(ModelUtility(), Observations({"unlearned": scripted()}, request_))
    assert finding.attempted["numbers"] == 3
    assert "probability on real authors" in finding.note
    assert "truth ratio on world facts" in finding.note
    assert finding.estimates["unlearned"]["real_authors_probability"].value is None
    assert finding.estimates["unlearned"]["real_authors_probability"].note == "no real authors"
    assert "3 of 9" in finding.scalars[0].title


def test_one_zero_makes_it_zero(scripted: Callable, request_: DeletionRequest) -> None:
    """A model that says nothing right has ROUGE 0 on the retain set, an empty answer included."""
    silent = scripted(says=dict.fromkeys(request_.retain["prompt"], ""))
    finding = run_one(ModelUtility(), Observations({"unlearned": silent}, request_))
    assert finding.estimates["unlearned"]["retain_rouge_recall"].value == 0.0
    assert finding.estimates["unlearned"]["utility"].value == 0.0


def test_sets_are_read_from_files(tmp_path: Path, scripted: Callable, request_: DeletionRequest) -> None:
    lines = [
        {"question": r["prompt"], "answer": r["answer"], "perturbed_answer": r["perturbed_answers"]}
        for r in world(3, "a")
    ]
    path = tmp_path / "authors.json"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    settings = {"model_utility": {"real_authors": path}}
    result = run_audits({"unlearned": scripted()}, request_, ["model_utility"], settings=settings)
    assert result.findings[0].estimates["unlearned"]["real_authors_probability"].n == 3
    with pytest.raises(BadInput):
        run_audits(
            {"unlearned": scripted()}, request_, settings={"model_utility": {"world_facts": tmp_path / "absent.json"}}
        )


def test_nothing_to_keep_is_no_data(scripted: Callable, make_examples: Callable) -> None:
    finding = run_one(ModelUtility(), Observations({"unlearned": scripted()}, DeletionRequest(make_examples(range(1)))))
    assert finding.status == "no data"


def test_parity_adds_to_both_denominators(scripted: Callable, request_: DeletionRequest) -> None:
    rows = request_.retain.to_list()  # type: ignore[union-attr]
    texts = [t for row in rows for t in (row["answer"], row.get("paraphrased_answer"), *row["perturbed_answers"]) if t]
    seen = Observations({"unlearned": scripted(dict.fromkeys(texts, 40.0))}, request_)
    found = [
        run_one(ModelUtility(ModelUtility.Config(parity=p)), seen).estimates["unlearned"]["retain_truth_ratio"].value
        for p in (False, True)
    ]
    # Wrong answers as likely as the true one; with 1e-10 in the denominator they seem next to impossible.
    assert found == pytest.approx([0.0, 1.0], abs=1e-6)
