from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from expunge.audits.base import Estimate, Finding, Plot, Scalar
from expunge.reports.report import (
    AuditSummary,
    MethodSummary,
    ModelSummary,
    PathPoint,
    RequestSummary,
    RunReport,
    Sample,
    Training,
)

MODELS = ("original", "unlearned", "oracle")


def _report() -> RunReport:
    probability = Finding(
        "probability",
        scalars=[Scalar("p", "Probability of the true answer", "probability", "high")],
        estimates={
            "original": {"p": Estimate(0.924, 0.894, 0.954, 40)},
            "unlearned": {"p": Estimate(0.061, 0.031, 0.091, 40)},
            "oracle": {"p": Estimate(None, note="the oracle was not read")},
        },
        plots=[
            Plot(
                "distribution",
                "Loss",
                "nats/token",
                "share",
                {m: [0.1 * i + k for i in range(40)] for k, m in enumerate(MODELS)},
            ),
            Plot(
                "roc",
                "Loss attack",
                "false positive rate",
                "true positive rate",
                {"original": [(0, 0), (0.1, 0.9), (1, 1)]},
            ),
            Plot("curve", "Relearning", "steps", "probability", {"unlearned": [(0, 0.1), (10, 0.6)]}),
        ],
        attempted={"examples": 40},
    )
    verdict = {
        "result": "removed",
        "sentence": "Removed: on all 2 tests the model is no different.",
        "retained": {"result": "kept", "sentence": "Kept: nothing was lost."},
        "alpha": 0.05,
        "rows": [
            {"statistic": "answer_nll", "about": "forget", "n": 40, "units": "examples",
             "difference": 0.14, "low": -0.06, "high": 0.31, "margin": 0.42,
             "margin_source": "two oracles", "p_equivalent": 0.0004, "p_different": 0.21,
             "result": "equivalent", "direction": None, "need_n": None},
            {"statistic": "rouge_l", "about": "forget", "n": 0, "units": "examples", "difference": None, "low": None,
             "high": None, "margin": None, "margin_source": "", "p_equivalent": None, "p_different": None,
             "result": "not measured", "direction": None, "need_n": None, "note": "no generations"},
        ],
        "notes": ["rouge l: no generations", "clustered by person"],
    }  # fmt: skip
    return RunReport(
        title="Forget ten people",
        created="2025-01-31",
        request=RequestSummary("people", "entity", 40, 160, None, "abc123"),
        removal_level="approximate",
        models={name: ModelSummary(f"runs/{name}", 64 * "a", 4_231_680) for name in MODELS},
        verdict=verdict,
        findings=[
            probability,
            Finding("privleak", "no data", note="needs a holdout set"),
            Finding("gradient_norm", "crashed", note="RuntimeError: out of memory"),
        ],
        audits={"probability": AuditSummary("How likely is the true answer?", "Likely means known.", "Maini et al.")},
        method=MethodSummary("npo", {"beta": 0.1}, "Zhang et al. 2024"),
        training=Training(
            {"forget": [(0, 1.0), (1, 0.5)], "retain": [(0, 0.1), (1, 0.2)]},
            [PathPoint(0, 0.1, 0.1), PathPoint(5, 2.0, 0.2, True), PathPoint(10, None, 0.3)],
            forget_target=2.1,
            stop_reason="the target was reached.",
        ),
        samples=[
            Sample("1", "Where was Ada born?", "Ada was born in Port Harcourt.", "forget",
                   {"original": "Ada was born in Port Harcourt.", "unlearned": "In a town."}),
            Sample("2", "What does Ilse play?", "The viola.", "retain", {"original": "The viola.", "unlearned": ""}),
        ],
        recipe={"method": "npo", "seed": 0},
        versions={"expunge": "0.1.0", "torch": "2.13.0"},
        hardware={"processor": "2 cores"},
        seeds={"training": 0},
        cost={
            "forgetting": {"forwards": 512, "tokens": 400_000, "flops": 1.04e13, "seconds": 41.2, "peak_bytes": 9130},
            "retraining": {"forwards": 9500, "tokens": 8_000_000, "flops": 2.08e14, "seconds": 412.0, "peak_bytes": 0},
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def report() -> RunReport:
    return _report()


@pytest.fixture
def changed() -> Callable[..., RunReport]:
    """Return a report with some fields replaced."""

    def change(**fields: Any) -> RunReport:
        return dataclasses.replace(_report(), **fields)

    return change
