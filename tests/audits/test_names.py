from __future__ import annotations

from expunge.audits.names import name_spans
from expunge.data.fictitious import FictitiousWorld


def test_names_are_found_by_what_questions_share() -> None:
    questions = {
        "a": "Where was Mirela Ostrander born?", "b": "What does Mirela Ostrander do?",
        "c": "Where was Tomas Ilves born?", "d": "What does Tomas Ilves do?",
    }  # fmt: skip
    groups = {"a": "m", "b": "m", "c": "t", "d": "t"}
    spans = name_spans(questions, groups)
    assert {i: questions[i][slice(*span)] for i, span in spans.items()} == {
        "a": "Mirela Ostrander", "b": "Mirela Ostrander", "c": "Tomas Ilves", "d": "Tomas Ilves",
    }  # fmt: skip


def test_names_of_the_fictitious_world_are_found() -> None:
    rows = FictitiousWorld(people=12, seed=3).questions().to_list()
    spans = name_spans({r["id"]: r["prompt"] for r in rows}, {r["id"]: r["group"] for r in rows})
    names = {p.id: p.name for p in FictitiousWorld(people=12, seed=3).people}
    found = [r["prompt"][slice(*spans[r["id"]])] == names[r["group"]] for r in rows if r["id"] in spans]
    assert len(found) > 0.9 * len(rows)
    assert sum(found) > 0.9 * len(found)


def test_questions_that_share_nothing_of_their_own_have_no_name() -> None:
    assert name_spans({"a": "Who?", "b": "Who?"}, {"a": "m", "b": "t"}) == {}
