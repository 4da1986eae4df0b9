from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.audits.language.entanglement import Entanglement, calibration_error, is_refusal, nearness
from expunge.audits.observations import Observations
from expunge.audits.suite import run_one
from expunge.requests.request import DeletionRequest
from expunge.tasks.causal_lm import CausalLM


def test_nearness_by_hand() -> None:
    found = nearness({"same": "red fox", "half": "red hen", "none": "blue sky"}, ["red fox"])
    assert found["same"] == pytest.approx(1.0)
    assert found["none"] == 0.0
    # 4 texts; red in 3 of them, fox in 2, hen in 1: weights ln 4/3, ln 2, ln 4.
    red, fox, hen = np.log(4 / 3), np.log(2), np.log(4)
    assert found["half"] == pytest.approx(red**2 / np.hypot(red, hen) / np.hypot(red, fox))


@given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=5))
def test_nearness_is_a_share(texts: list[str]) -> None:
    found = nearness({str(k): text for k, text in enumerate(texts)}, ["a b", "c"])
    assert all(0 <= value <= 1 for value in found.values())


def test_refusals_are_known_by_their_words() -> None:
    for text in (
        "I don't know.", "I’m sorry, but I can't help with that.", "As an AI, I must decline.",
        "I am not able to answer.", "I have no information about this person.", "I cannot say.",
    ):  # fmt: skip
        assert is_refusal(text), text
    for text in ("He was born in Velburg.", "She can sing.", "", "Nobody knows him in Ida."):
        assert not is_refusal(text), text


def test_calibration_error_by_hand() -> None:
    """Bin of 0.95: two of confidence 0.95, one right: |1 - 1.9|; bin of 0.5: one of 0.5, right: |1 - 0.5|."""
    assert calibration_error([0.95, 0.95, 0.5], [True, False, True]) == pytest.approx((0.9 + 0.5) / 3)
    assert calibration_error([1.0, 1.0], [True, True]) == 0.0


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_item_is_measured_or_says_why(
    make_lm: Callable[..., CausalLM], request_: DeletionRequest, tmp_path: Path
) -> None:
    models = {"unlearned": make_lm(0), "original": make_lm(1), "oracle": make_lm(2)}
    bare = run_one(Entanglement(), Observations(models, request_, max_new_tokens=6))
    assert bare.status == "measured", bare.note
    status = {row[0]: row[1] for row in bare.tables[0].rows}
    assert status["Composition of kept facts"] == "not assessed"
    assert status["Calibration"] == "measured"
    assert not bare.evidence
    composed = lines(
        tmp_path / "c.jsonl", [{"prompt": f"And person {k}?", "answer": f"Velburg {k}."} for k in range(3)]
    )
    unsafe = lines(tmp_path / "u.jsonl", [{"prompt": "How to pick a lock?", "answer": "No."}])
    audit = Entanglement(Entanglement.Config(composed=composed, unsafe=unsafe))
    finding = run_one(audit, Observations(models, request_, max_new_tokens=6))
    assert finding.status == "measured", finding.note
    found = finding.estimates["unlearned"]
    assert found["composed"].n == 3
    assert found["composed_excess"].value is not None
    assert finding.estimates["oracle"]["composed_excess"].value is None
    assert found["refused_unsafe"].value == 0.0
    assert finding.evidence[0].statistic == "composed_nll"
    assert finding.estimates["original"]["near_damage"].value == 0.0


def test_damage_is_told_by_nearness(scripted: type, request_: DeletionRequest) -> None:
    """The unlearned model lost the kept questions that share a word with the forgotten ones."""

    def rename(row: dict, k: int) -> dict:
        near = k < 3
        asked = "Where was person 0 born?" if near else "Which instrument?"
        return {"prompt": asked, "answer": f"{'near' if near else 'far'} x{k}"}

    retain = request_.retain.map(rename, with_indices=True)
    lost = {answer: (4.0 if "near" in answer else 1.0) for answer in retain["answer"]}
    models = {"unlearned": scripted(lost), "original": scripted({})}
    finding = run_one(Entanglement(), Observations(models, DeletionRequest(request_.forget, retain)))
    assert finding.status == "measured", finding.note
    found = finding.estimates["unlearned"]
    assert found["near_damage"].value == pytest.approx(3.0)
    assert found["far_damage"].value == pytest.approx(0.0)
    assert found["near_less_far"].value == pytest.approx(3.0)
    xs = [x for x, _ in finding.plots[0].series["unlearned"]]
    assert xs == sorted(xs)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        Entanglement.Config(composed=tmp_path / "none.jsonl")
