from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.audits.base import Estimate, Evidence, Finding, Plot, Scalar, Table
from expunge.reports.html import model_order, render_html, shared_words, write_html
from expunge.reports.report import LEVELS, AuditSummary, MethodSummary, ModelSummary, RunReport, Sample

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> ' \" & {{ 7*7 }} {% raw %} ]]> --> </style> $x_1$"
VOID = {"meta", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a page holds and whether its tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.problems: list[str] = []
        self.feed(text)
        self.problems += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def of(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def text(report: RunReport) -> str:
    return render_html(report)


def test_every_section_is_there(text: str) -> None:
    page = Page(text)
    assert page.problems == []
    sections = {"verdict", "numbers", "tests", "figures", "answers", "limits", "run", "cost"}
    assert sections <= set(page.of("id"))
    for link in page.of("href"):
        assert link.removeprefix("#") in page.of("id")
    for words in (
        "Removed", "Kept", "On all 2 tests the model is no different.", LEVELS["approximate"],
        "How likely is the true answer?", "higher means that it knows more", "0.924", "0.894 to 0.954", "npo",
        "Zhang et al. 2024", "two oracles", "beta: 0.1", "0.10×", "0.05×", "Ada was born in",
        "the target was reached.", "2.13.0", "4 231 680", 64 * "a", "clustered by person",
    ):  # fmt: skip
        assert words in page.text, words


def test_it_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert page.tags["script"] == page.tags["link"] == page.tags["iframe"] == page.tags["img"] == 0
    assert not [name for name in (a for _, a, _ in page.attributes) if name.startswith("on")]
    for value in page.of("src") + page.of("href") + page.of("xlink:href") + page.of("action") + page.of("data"):
        assert value.startswith("#")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert re.sub(r'xmlns="http://www\.w3\.org/2000/svg"', "", text).count("://") == 0
    assert "default-src 'none'" in "".join(page.of("content"))


def test_hostile_text_stays_text(changed: Callable[..., RunReport]) -> None:
    finding = Finding(
        HOSTILE,
        scalars=[Scalar("s", HOSTILE, HOSTILE)],
        estimates={"unlearned": {"s": Estimate(None, note=HOSTILE)}, HOSTILE: {"s": Estimate(1.0, note=HOSTILE)}},
        plots=[
            Plot("distribution", HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [1.0, 2.0]}),
            Plot("curve", HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(0, 1)]}),
            Plot("roc", HOSTILE, HOSTILE, HOSTILE, {HOSTILE: [(0, 0), (1, 1)]}),
        ],
        attempted={HOSTILE: HOSTILE},
        note=HOSTILE,
    )
    report = changed(
        title=HOSTILE,
        created=HOSTILE,
        models={"original": ModelSummary(HOSTILE, HOSTILE)},
        verdict={
            "result": HOSTILE,
            "sentence": HOSTILE,
            "rows": [{"statistic": HOSTILE, "note": HOSTILE}],
            "notes": [HOSTILE],
        },
        findings=[finding, Finding(HOSTILE, "crashed", note=HOSTILE), Finding(HOSTILE, "no data", note=HOSTILE)],
        audits={HOSTILE: AuditSummary(HOSTILE, HOSTILE, HOSTILE)},
        method=MethodSummary(HOSTILE, {HOSTILE: HOSTILE}, HOSTILE),
        samples=[Sample("1", HOSTILE, HOSTILE, HOSTILE, {"original": HOSTILE, HOSTILE: HOSTILE})],
        recipe={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        hardware={HOSTILE: [HOSTILE]},
        seeds={HOSTILE: 0},
        cost={HOSTILE: {}},
        notes=[HOSTILE],
    )
    text = render_html(report)
    page = Page(text)
    assert page.problems == []
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.tags["style"] == 1
    assert not [a for _, a, _ in page.attributes if a.startswith("on")]
    assert "{{ 7*7 }}" in page.text
    assert page.text.count("alert(1)") > 20


def test_missing_is_no_data_and_never_zero(changed: Callable[..., RunReport]) -> None:
    finding = Finding(
        "a",
        scalars=[Scalar("s", "Number", "u")],
        estimates={
            "original": {},
            "unlearned": {"s": Estimate(None, note="nothing to read")},
            "oracle": {"s": Estimate(float("nan"))},
        },
    )
    page = Page(
        render_html(changed(findings=[finding], cost={"forgetting": {}}, samples=[], training=None, verdict=None))
    )
    cells = page.text.split("Side by side", 2)[2].split("How it was decided")[0]
    assert cells.count("no data") == 3
    assert "nothing to read" in cells
    assert "not computed for this model" in cells
    assert not re.search(r"\b0(\.0+)?\b", cells)
    assert "nan" not in page.text.lower().split()
    cost = page.text.rsplit("Cost", 1)[1]
    assert cost.count("no data") >= 6
    assert "No verdict" in page.text


def test_memory_that_was_not_measured_is_no_data(changed: Callable[..., RunReport]) -> None:
    text = render_html(changed(cost={"forgetting": {"seconds": 1.0, "peak_bytes": 0}}))
    assert 'data-label="Peak memory">no data<' in text


def test_short_cells_of_a_table_are_not_broken(changed: Callable[..., RunReport]) -> None:
    table = Table("t", ("name", "p", "said"), [("a", "0.0500", "a sentence that may be broken anywhere")])
    text = render_html(changed(findings=[Finding("probability", estimates={"unlearned": {}}, tables=[table])]))
    assert '<span class="together">0.0500</span>' in text
    assert "<span>a sentence" in text


def test_crashed_audits_are_alarms_and_missing_ones_say_why(text: str) -> None:
    alert = text.split('role="alert"', 1)[1].split("</div>")[0]
    assert "crashed" in alert
    assert "RuntimeError: out of memory" in alert
    assert "needs a holdout set" in text


def test_an_almost_empty_report_renders(changed: Callable[..., RunReport]) -> None:
    empty = changed(
        models={}, verdict=None, findings=[], audits={}, method=None, training=None, samples=[], recipe={}, versions={},
        hardware={}, seeds={}, cost={}, removal_level="unknown",
    )  # fmt: skip
    page = Page(render_html(empty))
    assert page.problems == []
    assert page.text.lower().count("no data") >= 6
    assert LEVELS["unknown"] in page.text


@pytest.mark.parametrize(
    ("result", "state", "words"),
    [("removed", "good", "Removed"), ("not removed", "bad", "Not removed"), ("inconclusive", "open", "Inconclusive")],
)
def test_each_verdict_has_its_own_look(changed: Callable[..., RunReport], result: str, state: str, words: str) -> None:
    text = render_html(changed(verdict={"result": result, "sentence": "s"}, findings=[], training=None))
    main = text.split('<div class="verdict main ', 1)[1]
    assert main.startswith(state)
    assert words in main.split("</div>")[0]


@pytest.mark.parametrize("level", ["guard", "adapter"])
def test_a_guard_is_never_shown_as_removed(changed: Callable[..., RunReport], level: str) -> None:
    text = render_html(changed(removal_level=level, findings=[], training=None))
    main = text.split('<div class="verdict main ', 1)[1].split("</div>")[0]
    assert main.startswith("bad")
    assert "Hidden, not removed" in main
    assert LEVELS[level] in Page(text).text


def test_same_report_same_bytes(report: RunReport, text: str, tmp_path: Path) -> None:
    again = write_html(RunReport.from_json(report.to_json()), tmp_path / "b.html").read_bytes()
    assert again == text.encode()


def test_ids_are_unique_and_pictures_are_described(text: str) -> None:
    page = Page(text)
    assert max(Counter(page.of("id")).values()) == 1
    for head in re.findall(r"<svg[^>]*>", text):
        assert 'aria-hidden="true"' in head or re.search(r'role="img" aria-label="[^"]+"', head)
    assert page.tags["caption"] == page.tags["table"]
    assert page.tags["h1"] == 1
    assert page.of("lang") == ["en"]


def test_colours_follow_the_page(text: str) -> None:
    figures = text.split("<figure", 1)[1].split("</figure>")[0]
    assert "var(--original)" in figures
    assert not re.search(r"(fill|stroke): #", figures)


def test_models_stand_in_the_order_of_the_story(changed: Callable[..., RunReport]) -> None:
    models = {name: ModelSummary() for name in ("oracle-10", "extra", "oracle-2", "oracle", "unlearned", "original")}
    assert model_order(changed(models=models, findings=[])) == [
        "original",
        "unlearned",
        "oracle",
        "oracle-2",
        "oracle-10",
        "extra",
    ]


def test_shared_words_are_those_that_tell_the_answer() -> None:
    sample = Sample("1", "Who published The Salt Ledger?", "Mirela published it in 1987, as 3rd.", "forget")
    marked = [piece for piece, telling in shared_words("mirela PUBLISHED Salt in 1987 and it", sample) if telling]
    assert marked == ["mirela", "1987"]


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_shared_words_lose_no_text(answer: str, gold: str) -> None:
    sample = Sample("1", "question", gold, "forget")
    assert "".join(piece for piece, _ in shared_words(answer, sample)) == answer


def test_a_real_verdict_is_shown(changed: Callable[..., RunReport]) -> None:
    decide = pytest.importorskip("expunge.verdict").decide
    draw = np.random.default_rng(0)
    base = {f"{i:04d}": float(x) for i, x in enumerate(draw.normal(3, 0.3, 60))}
    values = {
        "original": dict.fromkeys(base, 0.1),
        "unlearned": dict.fromkeys(base, 0.12),
        "oracle": base,
        "oracle-2": {i: x + 0.02 for i, x in base.items()},
    }
    verdict = decide(
        [Evidence("answer_nll", "forget", values, knowing_is="low")], removal_level="approximate"
    ).to_dict()
    report = changed(verdict=verdict, findings=[], training=None)
    page = Page(render_html(RunReport.from_json(report.to_json())))
    assert "Not removed" in page.text
    assert "answer nll" in page.text
    assert "knows more" in page.text
    assert page.text.count("Not removed:") == 0


def test_what_many_numbers_say_stands_under_the_table_once(changed: Callable[..., RunReport]) -> None:
    finding = Finding(
        "probability",
        scalars=[Scalar("a", "A", "share"), Scalar("b", "B", "share")],
        estimates={
            "unlearned": {
                "a": Estimate(0.5, 0.4, 0.6, 9, note="few groups"),
                "b": Estimate(0.5, 0.4, 0.6, 9, note="few groups"),
            },
            "original": {"a": Estimate(0.9, 0.8, 1.0, 9, note="alone"), "b": Estimate(None, note="few groups")},
        },
    )
    page = render_html(changed(findings=[finding]))
    assert page.count("Note 1: few groups") == 1
    assert page.count("note 1<") == 2
    assert page.count("alone") == 1


def test_tables_of_an_audit_are_on_the_page(changed: Callable[..., RunReport]) -> None:
    table = Table("Where each concept is", ("concept", "p", HOSTILE), [("Velburg", 0.05, "by & by"), (HOSTILE, 1, "")])
    finding = Finding(
        "concept_vectors", estimates={"unlearned": {}}, tables=[table, Table("An empty table", ("a",), [])]
    )
    page = Page(render_html(changed(findings=[finding])))
    assert not page.problems
    assert "script" not in page.tags
    assert "Where each concept is" in page.text
    assert "0.050" in page.text
    assert "by & by" in page.text
    assert "An empty table" not in page.text
