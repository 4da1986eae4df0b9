from __future__ import annotations

from collections.abc import Callable

from expunge.audits.base import Estimate, Finding, Scalar
from expunge.reports.field_table import field_table, in_words
from expunge.reports.html import render_html
from expunge.reports.report import RunReport

MODELS = ("original", "unlearned", "oracle")


def findings(*names: str) -> list[Finding]:
    accuracies = Finding(
        "accuracies",
        scalars=[Scalar(name, name.upper(), "%", digits=2) for name in names],
        estimates={
            m: {n: Estimate(10.0 * k, 10.0 * k - 1, 10.0 * k + 1, 9) for n in names} for k, m in enumerate(MODELS)
        },
    )
    gap = Finding(
        "average_gap",
        scalars=[Scalar("gap_of_means", "Gap", "points")],
        estimates={
            m: {"gap_of_means": Estimate(None, note="alone") if m == "oracle" else Estimate(3.5)} for m in MODELS
        },
    )
    return [accuracies, gap, Finding("svc_mia", "no data", note="no test set")]


def test_a_row_per_model_and_what_is_missing_is_no_data(changed: Callable[..., RunReport]) -> None:
    report = changed(findings=findings("ua", "ra", "ta"), cost={"forgetting": {"seconds": 30.0}})
    columns, rows = field_table(report, MODELS)
    assert [c.key for c in columns] == ["model", "ua", "ra", "ta", "mia", "gap", "rte"]
    said = in_words(columns, rows, intervals=False)
    assert said[0] == ["original", "0.00", "0.00", "0.00", "no data", "3.50", ""]
    assert said[1] == ["unlearned", "10.00", "10.00", "10.00", "no data", "3.50", "0.50"]
    assert said[2][4:6] == ["no data", "no data"]
    assert in_words(columns, rows)[1][1] == "10.00 [9.00, 11.00]"
    page = render_html(report)
    assert page.count("<h3>The field's table</h3>") == 1
    assert "10.00 [9.00, 11.00]" in page


def test_fa_has_a_column_where_it_was_measured_and_other_reports_have_no_table(
    changed: Callable[..., RunReport],
) -> None:
    columns, _ = field_table(changed(findings=findings("ua", "ra", "ta", "fa")), MODELS)
    assert "fa" in [c.key for c in columns]
    nothing = changed(findings=[Finding("accuracies", "crashed", note="x")], cost={})
    assert field_table(nothing, MODELS) == ([], [])
    assert "The field's table" not in render_html(nothing)
    unknown = field_table(changed(findings=findings("ua"), cost={}), MODELS)[1][1]
    assert unknown["rte"] is None  # not recorded, and not 0
