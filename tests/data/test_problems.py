from __future__ import annotations

from expunge.data.problems import SHOWN, ProblemList


def test_many_of_a_kind_are_counted() -> None:
    problems = ProblemList("forget")
    for line in range(1, 101):
        problems.add("a.jsonl", "is empty", "fill it in", line=line, column="answer")
    problems.add("a.jsonl", "is NaN", "fix it", line=5, column="answer")
    found = problems.all()
    assert problems.count == 101
    assert len(found) == SHOWN + 2
    assert found[0].where == "forget: a.jsonl, line 1, field 'answer'"
    assert found[5].what == "is NaN"  # in the order of lines
    assert found[-1].what == f"{100 - SHOWN} more lines have the same problem, up to 100"


def test_empty_is_false() -> None:
    problems = ProblemList()
    assert not problems
    problems.add("a.parquet", "is broken", "fix it", line=2)
    assert problems
    assert problems.all()[0].where == "a.parquet, row 2"
