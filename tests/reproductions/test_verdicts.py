from __future__ import annotations

import itertools

import pytest

from expunge.audits.base import Estimate, Evidence, Finding
from expunge.reports.report import ModelSummary, RequestSummary, RunReport
from expunge.reports.side_by_side import Pair
from expunge.reproductions.verdicts import CONTROL, MODELS, REFUSAL, Refusing, Verdicts, numbers, told_apart
from expunge.runs.models import Answers, stated_level
from expunge.verdict import decide
from expunge.verdict.pairs import PairTest

FAR = ("refusal_behaviour_leak", "suppression_adversarial_leak", "grad_diff_parametric_leak")


def run(*, told: bool) -> dict[str, float]:
    """A seed in which every verdict is the right one, or none."""
    out = {f"{name}_{word}": 0.0 for name in MODELS for word in ("removed", "not_removed", "inconclusive")}
    for name in MODELS:
        out[f"{name}_{'removed' if (name == 'retrain') == told else 'not_removed'}"] = 1.0
    out |= {f"{a}_{b}_audits": float(told) for a, b in itertools.combinations(MODELS, 2)}
    out |= {f"{CONTROL}_removed": float(told), f"retrain_{CONTROL}_audits": float(not told)}
    out["retrain_damaged"] = float(not told)
    out |= dict.fromkeys(FAR, float(told)) | {"refusal_said": 0.0, "refusal_forget": 0.8}
    return out | {
        "grad_diff_trace_left": 0.8,
        "needle_trace_left": 0.1 if told else 0.9,
        "needle_not_removed": float(told),
    }


def test_the_checks_come_out_either_way() -> None:
    assert all(check.holds for check in Verdicts().judge([run(told=True)] * 3))
    assert not any(check.holds for check in Verdicts().judge([run(told=False)] * 3))


def test_one_seed_that_fails_fails_the_check() -> None:
    guard_removed = run(told=True) | {"suppression_removed": 1.0, "suppression_not_removed": 0.0}
    checks = Verdicts().judge([run(told=True), guard_removed])
    assert [check.holds for check in checks].count(False) == 1
    assert "suppression: removed 50%" in checks[1].detail


def test_retraining_that_damages_what_had_to_stay_fails_its_check() -> None:
    checks = Verdicts().judge([run(told=True), run(told=True) | {"retrain_damaged": 1.0}])
    (failed,) = [check for check in checks if not check.holds]
    assert failed.claim.startswith("retraining is removed")


def test_a_pair_that_one_seed_cannot_tell_apart_is_named() -> None:
    missed = run(told=True) | {"grad_diff_needle_audits": 0.0}
    checks = Verdicts().judge([run(told=True), missed])
    (failed,) = [check for check in checks if not check.holds]
    assert failed.detail == "9 of 10 pairs; not in every seed: grad_diff and needle"


def test_two_retrained_models_told_apart_are_a_false_alarm() -> None:
    checks = Verdicts().judge([run(told=True), run(told=True) | {f"retrain_{CONTROL}_audits": 2.0}])
    (failed,) = [check for check in checks if not check.holds]
    assert "0, 2" in failed.detail


def test_what_was_not_measured_is_said_and_holds_nothing() -> None:
    bare = {key: value for key, value in run(told=True).items() if not key.startswith("needle")}
    check = next(check for check in Verdicts().judge([bare]) if "Needle's" in check.claim)
    assert not check.holds
    assert "not measured" in check.detail


@pytest.mark.parametrize("level", ["approximate", "guard"])
def test_numbers_are_of_the_verdict_and_its_families(level: str) -> None:
    values = {m: {f"x{i}": mean + 0.01 * (i % 5) for i in range(20)} for m, mean in
              (("unlearned", 0.8), ("original", 0.9), ("oracle", 0.1))}  # fmt: skip
    leak = Evidence("trace_jaccard", "forget", values, audit="concept_vectors", family="parametric")
    estimates = {"unlearned": {"jaccard": Estimate(0.8)}}
    report = RunReport(
        title="t", created="2025-01-31", request=RequestSummary("people", "entity", 20), removal_level=level,
        models={"unlearned": ModelSummary()}, verdict=decide([leak], removal_level=level).to_dict(),
        findings=[Finding("concept_vectors", evidence=[leak], estimates=estimates)],
    )  # fmt: skip
    found = numbers("grad_diff", report)
    assert found["grad_diff_not_removed"] == 1.0
    assert found["grad_diff_parametric_leak"] == 1.0
    assert found["grad_diff_trace_left"] == pytest.approx(0.875)
    assert found["grad_diff_trace"] == 0.8
    assert "grad_diff_forget" not in found


def test_pairs_with_the_second_retrained_model_count_for_nothing_but_the_false_alarm() -> None:
    def by(audit: str) -> PairTest:
        return PairTest("", "", audit, "", (0.0, 0.0), 0.0, None, None, 0.1, 20, "examples", 0.0, True)

    pairs = [
        Pair("refusal", "needle", [by("rouge"), by("jailbreak")], 9), Pair("grad_diff", "needle", [by("rouge")], 9),
        Pair("retrain", CONTROL, [], 9), Pair("needle", CONTROL, [by("rouge")], 9),
    ]  # fmt: skip
    assert told_apart(pairs, ["rouge", "jailbreak", "relearning"]) == {
        "refusal_needle_audits": 2.0, "grad_diff_needle_audits": 1.0, f"retrain_{CONTROL}_audits": 0.0,
        "jailbreak_pairs": 1.0, "rouge_pairs": 2.0, "relearning_pairs": 0.0,
    }  # fmt: skip


class Parrot:
    """Says every prompt again."""

    cost = None
    model = None

    def score(self, pairs: list[tuple[str, str]]) -> list[str]:
        return [answer for _, answer in pairs]

    def generate(self, prompts: list[str], max_new_tokens: list[int]) -> list[str]:
        return list(prompts)

    def count_tokens(self, text: str) -> int:
        return len(text)

    def copy(self) -> Parrot:
        return Parrot()


def test_the_filter_refuses_by_name_and_is_known_as_a_guard() -> None:
    wrapped = Refusing(Parrot(), ["Ada Lind"])  # type: ignore[arg-type]
    assert wrapped.generate(["Where was Ada Lind born?", "Where was Bo born?"], [8, 8]) == [
        REFUSAL, "Where was Bo born?",
    ]  # fmt: skip
    assert wrapped.score([("Where was Ada Lind born?", "In Oslo.")]) == ["In Oslo."]
    assert isinstance(wrapped.copy(), Parrot)
    assert isinstance(wrapped, Answers)
    assert stated_level(wrapped) == "guard"
