"""The table is made from the results and says what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.errors import BadInput
from expunge.reproductions.table import read_results, to_markdown

RESULT: dict[str, Any] = {
    "name": "coins",
    "title": "a made-up reproduction",
    "paper": "Nobody 2024, Nothing | at all",
    "claim": "Coins have two sides",
    "holds": False,
    "checks": [
        {"claim": "heads", "holds": True, "detail": "seen 3 times"},
        {"claim": "tails", "holds": False, "detail": "never seen"},
    ],
    "measured": {
        "heads": {"mean": 3.0, "low": 2.5, "high": 3.5, "n": 3},
        "tails": {"mean": None, "low": None, "high": None, "n": 0},
    },
    "seeds": [0, 1, 2],
    "minutes": 1.25,
    "quick": False,
    "runs": {},
    "facts": {
        "date": "2026-01-02 03:04:05 UTC",
        "command": "expunge reproduce coins",
        "commit": "abc1234",
        "hardware": {"cores": 2, "processor": "slow", "threads": 1, "accelerators": []},
    },
}


def test_a_row_and_a_section_per_result() -> None:
    text = to_markdown([RESULT, {**RESULT, "name": "dice", "checks": RESULT["checks"][:1], "holds": True}])
    assert (
        "| [coins](#coins) | Nobody 2024, Nothing \\| at all | Coins have two sides | 1 of 2 checks | 3 | 1.2 |" in text
    )
    assert "| [dice](#dice) |" in text
    assert "| yes | 3 |" in text
    assert "`expunge reproduce coins`, 2026-01-02, commit abc1234, seeds 0, 1, 2, 2 cores (slow), no GPU" in text
    assert "- **Does not hold**: tails. Never seen" in text
    assert "| `heads` | 3 | 2.5 to 3.5 | 3 |" in text
    assert "| `tails` | no data | - | 0 |" in text
    assert "not to be quoted" not in text
    assert "not to be quoted" in to_markdown([{**RESULT, "quick": True}])


def test_results_are_read_sorted_and_what_is_none_is_named(tmp_path: Path) -> None:
    for name in ("dice", "coins"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**RESULT, "name": name}))
    assert [r["name"] for r in read_results(tmp_path)] == ["coins", "dice"]
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(BadInput) as caught:
        read_results(tmp_path)
    assert len(caught.value.problems) == 2
    with pytest.raises(BadInput, match="holds no"):
        read_results(tmp_path / "nowhere")


def test_the_page_shows_the_committed_results() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    page = (docs / "reproductions.md").read_text(encoding="utf-8")
    shown = page.partition("made by `make results` from docs/results/reproductions. -->\n\n")[2]
    assert shown == to_markdown(read_results(docs / "results" / "reproductions")), "run make results"


def test_committed_results_are_neither_of_the_quick_version_nor_of_changed_code() -> None:
    for result in read_results(Path(__file__).resolve().parents[2] / "docs" / "results" / "reproductions"):
        assert not result["quick"], result["name"]
        assert len(result["seeds"]) >= 3, result["name"]
        # Code that lies in no repository has no commit; the page then says "unknown".
        assert not result["facts"]["commit"].endswith("+"), f"{result['name']} was run from changed code"
