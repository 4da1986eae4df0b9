from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from datasets import Dataset

from expunge.audits.base import Evidence, Finding
from expunge.methods import run
from expunge.requests.request import DeletionRequest
from expunge.runs import summary
from expunge.tasks.causal_lm import CausalLM


def examples(kind: str, count: int) -> Dataset:
    rows = [{"id": f"{kind}{k}", "prompt": f"{kind} {k}?", "answer": f"{kind} {k}"} for k in range(count)]
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("forget", "retain", "asked", "expected", "notes"),
    [
        (10, 500, {}, {"retain": 100}, 1),
        (200, 500, {}, {"retain": 200}, 1),
        (200, 150, {}, {"retain": 200}, 0),
        (10, 500, {"retain": 1000}, {"retain": 1000}, 0),
        (10, 500, {"retain": 20, "forget": 5, "holdout": 3}, {"retain": 20, "forget": 5}, 2),
    ],
)
def test_audits_read_as_much_as_there_is_to_forget(
    forget: int, retain: int, asked: Mapping[str, int], expected: Mapping[str, int], notes: int
) -> None:
    request = DeletionRequest(examples("f", forget), examples("r", retain))
    limits = summary.audit_limits(request, asked)
    assert limits == expected
    assert summary.audit_limits(request, limits) == limits  # so that a resolved recipe stays the same recipe
    assert len(summary.limit_notes(request, limits, 0)) == notes


def test_samples_keep_the_order_of_the_request_and_leave_out_what_was_not_asked() -> None:
    request = DeletionRequest(examples("f", 3), examples("r", 60))
    answers = {
        "forget": {"f2": {"unlearned": "x"}, "f0": {"unlearned": "y"}},
        "retain": {f"r{k}": {"unlearned": "z"} for k in range(60)},
    }
    found = summary.samples(request, answers)
    assert [s.id for s in found[:2]] == ["f0", "f2"]
    assert (found[0].prompt, found[0].gold, found[0].role) == ("f 0?", "f 0", "forget")
    assert len([s for s in found if s.role == "retain"]) == summary.QUOTED["retain"]


def done(steps: int, kept: int) -> dict[str, Any]:
    probes = [{"step": s, "forget_nll": 1.0 + s, "retain_nll": None} for s in (0, kept, steps)]
    return {
        "training": {
            "steps": steps,
            "kept_step": kept,
            "stop_reason": "all steps done",
            "history": [
                {"step": s + 1, "loss": 1.0, "loss/npo": float(s), "loss/retain_nll": 0.5} for s in range(steps)
            ],
            "probes": probes,
            "probe_target": 2.5,
        }
    }


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    training = summary.training_summary(done(5000, 40), CausalLM)
    assert training is not None
    assert list(training.loss) == ["npo", "retain_nll"]
    assert len(training.loss["npo"]) <= summary.DRAWN + 1
    assert training.loss["npo"][0] == (1, 0.0)
    assert training.loss["npo"][-1] == (5000, 4999.0)
    assert [(p.step, p.kept) for p in training.path] == [(0, False), (40, True), (5000, False)]
    assert "after step 40 were kept" in training.stop_reason


def test_nothing_trained_is_no_curve() -> None:
    assert summary.training_summary({"training": None}, CausalLM) is None


def test_crashed_audits_are_named() -> None:
    findings = [Finding("rouge", "crashed", note="x"), Finding("privleak", "no data")]
    assert summary.crash_notes(findings) == [
        "Crashed: rouge (x). What would have been found is not known, so nothing is called removed or kept."
    ]
    assert summary.crash_notes(findings[1:]) == []


def test_why_nothing_is_known_is_said_only_where_nothing_is() -> None:
    silent = Finding("multiple_choice", "no data", note="the request has no choices")
    assert summary.no_data_notes([silent]) == ["multiple_choice has no data: the request has no choices."]
    known = Finding("rouge", "measured", evidence=(Evidence("rouge_recall", "forget", {}),))
    assert summary.no_data_notes([silent, known]) == []


def test_a_mask_is_part_of_what_forgetting_cost(tiny_predictor: Any, tiny_rows: Any) -> None:
    """SalUn takes gradients of the whole forget set before its first step."""
    request = DeletionRequest(tiny_rows("table", range(8)), tiny_rows("table", range(8, 20)))
    found = run.unlearn(tiny_predictor("table"), request, "salun", settings={"max_steps": 1, "batch_size": 4})
    assert found.training is not None
    assert summary.forgotten(found)["cost"]["backwards"] > found.training.cost.backwards


@pytest.mark.parametrize(
    ("result", "remaining", "trained", "said"),
    [
        ("not removed", [0.97, 0.99], True, True),
        ("not removed", [0.97, 0.4], True, False),
        ("not removed", [None, 0.99], True, False),
        ("inconclusive", [0.97], True, False),
        ("not removed", [0.97], False, False),
        ("not removed", [], True, False),
    ],
)
def test_a_run_that_hardly_moved_says_what_to_change(
    result: str, remaining: list[float | None], trained: bool, said: bool
) -> None:
    rows = [{"about": "forget", "result": "different", "remaining": left} for left in remaining]
    rows += [{"about": "retain", "result": "kept", "remaining": None}]
    train = {"learning_rate": 1e-5, "epochs": 10} if trained else None
    notes = summary.still_notes({"result": result, "rows": rows}, train)
    assert bool(notes) == said
    assert all("learning_rate (now 1e-05)" in note and "epochs (now 10)" in note for note in notes)
    short = train and {**train, "max_steps": 3}
    assert all(
        "max_steps (now 3; epochs: 10)" in n for n in summary.still_notes({"result": result, "rows": rows}, short)
    )
