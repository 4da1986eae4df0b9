"""Their names and our audits: each points at an audit and a number that exist."""

from __future__ import annotations

import pytest

from expunge.audits.base import Estimate, Finding
from expunge.audits.suite import AUDITS
from expunge.benchmarks.open_unlearning_metrics import KNOWN, UTILITY
from expunge.benchmarks.open_unlearning_names import AREAS, MEANS, OTHERS, audits_of, our_number


def test_every_name_is_one_of_theirs_and_every_audit_one_of_ours() -> None:
    assert {*MEANS, *AREAS, *OTHERS} < set(KNOWN)
    assert set(UTILITY) < set(MEANS)
    assert set(audits_of(KNOWN)) < set(AUDITS.names())
    # What is left over is a part of others.
    assert all("_PARA_" in n or "_PERT_" in n or n[2:] == "_Q_A_Prob" for n in set(KNOWN) - {*MEANS, *AREAS, *OTHERS})


def test_audits_are_named_once() -> None:
    assert audits_of(["mia_loss", "mia_zlib", "ra_Q_A_ROUGE", "wf_Q_A_ROUGE", "forget_Q_A_PARA_Prob"]) == [
        "membership",
        "model_utility",
    ]


def test_our_number() -> None:
    finding = Finding("forget_quality", estimates={"unlearned": {"log10_p": Estimate(-2.0, n=40)}})
    assert our_number({"forget_quality": finding}, "forget_quality").value == pytest.approx(0.01)
    assert our_number({"forget_quality": finding}, "forget_quality", "oracle").note == "not measured"
    none = Finding("privleak", "no data", note="no oracle")
    assert our_number({"privleak": none}, "privleak") == Estimate(None, note="no oracle")
    assert "no audit of its own" in our_number({}, "ra_Q_A_Prob").note
