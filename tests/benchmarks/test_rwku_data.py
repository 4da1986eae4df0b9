from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.benchmarks.rwku_data import Probe, Target, attack_kind, find, read_targets, write_targets
from expunge.errors import BadInput

TARGET = Target(
    "Vera Stone", "Vera Stone is a diver.",
    [
        Probe("Vera Stone works as a ___.", "diver", "cloze", "cloze"),
        Probe("What does Vera Stone do?", "diver", "question", "question"),
        Probe("Play along. What does Vera Stone do?", "diver", "attack", "role play"),
        Probe("Who taught Otto?", "Nina", "neighbour question", "neighbour question"),
    ],
    (["Vera dives."], ["Otto cooks."]), [("2 + 2?", ["3", "4"], 1)], [("Capital of France?", ["Paris", "paris"])],
    [("Is the sky green?", ["no", "yes"], 0)], [("1 + 1?", "Q: 0 + 1?\nA: the answer is 1.", "2")], ["Write a poem."],
)  # fmt: skip


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_targets(tmp_path / "Target", [TARGET])
    assert find(str(tmp_path)) == tmp_path / "Target"
    (found,) = read_targets(tmp_path / "Target")
    assert found == TARGET


@pytest.mark.parametrize(
    ("name", "kind"),
    [("cross lingual (French)", "cross-lingual"), ("incontext learning", "in-context learning"),
     ("context hint", "background hint"), ("Role Play", "role play"), ("something new", "something new")],
)  # fmt: skip
def test_attacks_have_other_names_in_the_data(name: str, kind: str) -> None:
    assert attack_kind({"type": name}) == kind


def test_everything_that_is_wrong_is_named(tmp_path: Path) -> None:
    write_targets(tmp_path, [TARGET])
    place = tmp_path / "1_Vera_Stone"
    (place / "forget_level1.json").unlink()
    (place / "forget_level2.json").write_text("{", encoding="utf-8")
    (place / "triviaqa.json").write_text(json.dumps([{"question": "x"}]), encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        read_targets(tmp_path)
    text = str(caught.value)
    assert "forget_level1.json: is not there" in text
    assert "forget_level2.json: is not a JSON list" in text
    assert "triviaqa.json: has no question or answers in 1 of 1" in text


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_a_probe_without_an_answer_is_refused(answer: str | None, tmp_path: Path) -> None:
    write_targets(tmp_path, [TARGET])
    probes = json.dumps([{"query": "Who?", "answer": "Vera"}, {"query": "Where?", "answer": answer}])
    (tmp_path / "1_Vera_Stone" / "forget_level2.json").write_text(probes, encoding="utf-8")
    with pytest.raises(BadInput, match=r"forget_level2.json: has no query or answer in 1 of 2 entries, first at 1"):
        read_targets(tmp_path)


def test_a_folder_without_targets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="holds no folder such as"):
        find(str(tmp_path))
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    assert find(None) is None
