from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from expunge.audits.base import Estimate, Finding, Scalar
from expunge.reports.model_card import render_model_card, write_model_card
from expunge.reports.report import LEVELS, MethodSummary, ModelSummary, RunReport


def front(text: str) -> dict[str, object]:
    _, block, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(block))


def test_what_a_folder_says_of_itself_is_on_its_card(report: RunReport, tmp_path: Path) -> None:
    assert "How to load it" not in render_model_card(report)
    (tmp_path / "expunge.json").write_text('{"note": "Plain loading gives the model without its guard."}')
    text = write_model_card(report, tmp_path).read_text(encoding="utf-8")
    assert "## How to load it\n\nPlain loading gives the model without its guard.\n" in text


def test_front_matter_and_sections(report: RunReport, tmp_path: Path) -> None:
    path = write_model_card(report, tmp_path)
    assert path == tmp_path / "README.md"
    text = path.read_text(encoding="utf-8")
    found = front(text)
    assert found["library_name"] == "transformers"
    assert found["tags"] == ["machine-unlearning", "expunge", "npo"]
    assert found["expunge"] == {
        "removal_level": "approximate", "verdict": "removed", "retained": "kept", "method": "npo", "request": "abc123",
        "forget_examples": 40,
    }  # fmt: skip
    for words in (
        "## Numbers",
        "## What this does not prove",
        "## How to run it again",
        LEVELS["approximate"],
        "method: npo",
        "0.924 [0.894, 0.954]",
        "no data",
        64 * "a",
        "torch 2.13.0",
    ):
        assert words in text, words


def test_base_model_is_a_hub_name_or_absent(changed: Callable[..., RunReport]) -> None:
    def base(path: str) -> object:
        return front(render_model_card(changed(models={"original": ModelSummary(path)}))).get("base_model")

    assert base("org/small-llama") == "org/small-llama"
    assert [base(p) for p in ("/srv/models/x", "./model", "../a/b", "runs/2025/original", "")] == [None] * 5


def test_a_card_tells_nothing_of_the_disk(changed: Callable[..., RunReport]) -> None:
    text = render_model_card(changed(models={"original": ModelSummary("/srv/private/base")}))
    assert "| base, SHA-256" in text
    assert "someone" not in text


def test_the_hub_library_reads_it(report: RunReport) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(render_model_card(report))
    assert card.data.library_name == "transformers"
    assert card.data.to_dict()["expunge"]["verdict"] == "removed"


def test_hostile_text_breaks_neither_yaml_nor_tables(changed: Callable[..., RunReport]) -> None:
    bad = "x\n---\n| a | <script>alert(1)</script> ``` [l](http://e)\n# h"
    finding = Finding("a", scalars=[Scalar("s", bad, "u")], estimates={"unlearned": {"s": Estimate(1.0)}})
    text = render_model_card(
        changed(
            title=bad,
            method=MethodSummary(bad, {"k": "```\n# out\n```"}, bad),
            findings=[finding],
            verdict={"result": bad, "sentence": bad},
            recipe={"k": "````"},
        )
    )
    assert front(text)["tags"][2] == " ".join(bad.split())  # type: ignore[index]
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "\n# h" not in body
    row = next(line for line in body.splitlines() if "(u)" in line)
    assert row.replace("\\|", "").count("|") == 6
    assert "`````yaml" in body


def test_nothing_measured_is_said(changed: Callable[..., RunReport]) -> None:
    text = render_model_card(changed(findings=[], verdict=None, method=None, recipe={}, versions={}, seeds={}))
    assert "No data: no audit measured anything." in text
    assert front(text)["expunge"]["verdict"] == "no data"  # type: ignore[index]
    assert render_model_card(changed()) == render_model_card(changed())
