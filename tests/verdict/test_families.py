from __future__ import annotations

import json

from expunge.audits.base import FAMILIES, Evidence
from expunge.verdict import Row, decide
from expunge.verdict.families import by_family, decisive


def row(statistic, result, *, family="behaviour", direction=None, remaining=None, about="forget", p=None):
    return Row(statistic, about, result, direction, remaining=remaining, p_equivalent=p, family=family, audit=statistic)


def test_a_leak_decides_before_suppression_however_large() -> None:
    rows = [row("a", "different", direction="suppression", remaining=-3.0),
            row("b", "different", direction="leak", remaining=0.4),
            row("c", "different", direction="leak", remaining=0.9),
            row("d", "damaged", about="retain", remaining=9.0)]  # fmt: skip
    assert decisive(rows).statistic == "c"
    assert decisive(rows[:1]).statistic == "a"
    assert decisive([row("a", "equivalent"), row("b", "inconclusive")]) is None


def test_each_family_says_the_worst_that_one_of_its_tests_does() -> None:
    rows = [row("held", "equivalent", family="adversarial"),
            row("shown", "different", family="adversarial", direction="leak", remaining=0.5),
            row("nll", "equivalent", p=0.01), row("rouge", "equivalent", p=0.03),
            row("lens", "not measured", family="parametric"), row("trace", "equivalent", family="parametric"),
            row("auc", "cannot tell", family="membership"), row("kept", "damaged", about="retain")]  # fmt: skip
    found = {f.family: f for f in by_family(rows)}
    assert list(found) == list(FAMILIES)
    assert (found["adversarial"].result, found["adversarial"].statistic) == ("leak", "shown")
    assert (found["behaviour"].result, found["behaviour"].statistic, found["behaviour"].tests) == (
        "equivalent", "rouge", 2,
    )  # fmt: skip
    assert (found["parametric"].result, found["parametric"].audit) == ("inconclusive", "lens")
    assert found["membership"].result == "cannot tell"


def test_families_without_evidence_are_absent() -> None:
    assert by_family([row("nll", "kept", about="retain")]) == ()


def evidence(level: float, statistic: str, family: str) -> Evidence:
    def around(mean: float, shift: float) -> dict[str, float]:
        return {f"x{i}": mean + 0.01 * ((i * 7 + shift) % 5 - 2) for i in range(30)}

    values = {"unlearned": around(level, 1), "original": around(0.9, 2), "oracle": around(0.1, 3)}
    return Evidence(statistic, "forget", values, audit=f"of_{statistic}", family=family)


def test_the_verdict_says_which_family_gave_it_away() -> None:
    asked, opened = evidence(0.1, "answer", "behaviour"), evidence(0.7, "trace", "parametric")
    verdict = decide([asked, opened], removal_level="approximate")
    assert verdict.result == "not removed"
    assert verdict.decided_by == "trace"
    assert {f.family: f.result for f in verdict.families} == {"behaviour": "equivalent", "parametric": "leak"}
    plain = json.loads(json.dumps(verdict.to_dict()))
    assert plain["families"][1]["audit"] == "of_trace"
    assert plain["rows"][1]["family"] == "parametric"
    assert decide([asked]).decided_by == ""


def test_a_guard_is_never_removed_though_every_family_says_the_same() -> None:
    verdict = decide([evidence(0.1, "answer", "behaviour")], removal_level="guard")
    assert (verdict.result, verdict.by_tests, verdict.decided_by) == ("not removed", "removed", "")
