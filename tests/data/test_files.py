from __future__ import annotations

import json
import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from expunge.data import FictitiousWorld, read_examples
from expunge.errors import BadInput
from expunge.requests import example_id

words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=10, unique=True)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def problems_of(path: Path, **options: Any) -> list[tuple[str, str]]:
    with pytest.raises(BadInput) as caught:
        read_examples(path, **options)
    return [(problem.where.removeprefix(str(path)).lstrip(", "), problem.what) for problem in caught.value.problems]


@settings(deadline=None, max_examples=20)
@given(pairs, st.randoms(use_true_random=False))
def test_every_format_gives_the_same_ids(content: list[tuple[str, str]], chance: random.Random) -> None:
    rows = [{"question": q, "answer": a} for q, a in content]
    shuffled = [dict(sorted(row.items(), reverse=chance.random() < 0.5)) for row in rows]
    chance.shuffle(shuffled)
    data = Dataset.from_list(shuffled)
    with TemporaryDirectory() as name:
        folder = Path(name)
        written(folder / "a.jsonl", rows)
        (folder / "a.json").write_text(json.dumps(shuffled), encoding="utf-8")
        data.to_csv(folder / "a.csv", index=False)
        data.to_parquet(folder / "a.parquet")
        data.save_to_disk(folder / "saved")
        first = read_examples(folder / "a.jsonl")
        assert first["id"] == [example_id({"prompt": q, "answer": a}) for q, a in content]
        assert list(zip(first["prompt"], first["answer"], strict=True)) == content
        for other in ("a.json", "a.csv", "a.parquet", "saved"):
            again = read_examples(folder / other)
            assert set(again["id"]) == set(first["id"]), other
            assert dict(zip(again["id"], again["answer"], strict=True)) == dict(
                zip(first["id"], first["answer"], strict=True)
            )
        assert set(read_examples(data)["id"]) == set(first["id"])


def test_reading_what_was_read_changes_nothing(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    for rows in (
        [{"text": "some text", "n": 1}],
        [{"messages": chat}],
        [{"question": "q", "answer": "a", "id": "mine", "perturbed_answer": ["b"], "group": 3}],
    ):
        once = read_examples(written(tmp_path / "a.jsonl", rows))
        assert read_examples(once).to_list() == once.to_list()
        once.save_to_disk(tmp_path / "saved")
        again = read_examples(tmp_path / "saved")
        assert again.remove_columns(["source_file"]).to_list() == once.remove_columns(["source_file"]).to_list()


@pytest.mark.parametrize("kind", ["questions", "biographies", "multiple_choice", "cloze", "reverse", "two_hop"])
def test_the_fictitious_world_can_be_read_back(tmp_path: Path, kind: str) -> None:
    made = getattr(FictitiousWorld(5), kind)()
    made.to_json(tmp_path / "a.jsonl")
    again = read_examples(tmp_path / "a.jsonl")
    assert again.select_columns(made.column_names).to_list() == made.to_list()


def test_layouts(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "a2", "weight": 1},
        {"role": "user", "content": "thanks"},
    ]
    row = read_examples(written(tmp_path / "a.jsonl", [{"messages": turns, "n": 4}]))[0]
    before = turns[:4]
    assert row["messages"] == before
    assert (row["prompt"], row["answer"], row["n"]) == ("q2", "a2", 4)
    assert row["id"] == example_id({"messages": before, "answer": "a2"})
    row = read_examples(written(tmp_path / "a.jsonl", [{"text": "t"}]))[0]
    assert (row["prompt"], row["answer"], row["id"]) == ("", "t", example_id({"prompt": "", "answer": "t"}))
    row = read_examples(written(tmp_path / "a.jsonl", [{"prompt": "Once", "completion": " upon"}]))[0]
    assert (row["prompt"], row["answer"]) == ("Once", " upon")


def test_extras_get_their_names_and_the_rest_is_carried(tmp_path: Path) -> None:
    rows = [
        {
            "answer": "a",
            "question": "q",
            "paraphrased_question": "pq",
            "paraphrased_answer": "pa",
            "perturbed_answer": ["x", "y"],
            "group": 7,
            "id": "mine",
            "prompt ": "kept",
            "meta": {"k": [1]},
        }
    ]
    path = written(tmp_path / "a.jsonl", rows)
    assert read_examples(path)[0] == {
        "id": example_id({"prompt": "q", "answer": "a"}),
        "prompt": "q",
        "answer": "a",
        "paraphrased_prompt": "pq",
        "paraphrased_answer": "pa",
        "perturbed_answers": ["x", "y"],
        "group": "7",
        "source_file": str(path),
        "source_line": 1,
        "source_id": "mine",
        "prompt ": "kept",
        "meta": {"k": [1]},
    }
    mapped = read_examples(path, columns={"answer": "paraphrased_answer", "paraphrased_answer": "answer"})[0]
    assert (mapped["answer"], mapped["paraphrased_answer"]) == ("pa", "a")
    other = read_examples(path, columns={"answer": "paraphrased_answer"})[0]
    assert other["source_answer"] == "a"


def test_lists_in_csv_cells_are_json(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('question,answer,perturbed_answer\nq,a,"[""x"", ""y""]"\nr,b,x\n')
    assert problems_of(path) == [("line 3, field 'perturbed_answer'", "is 'x', not a list")]
    assert read_examples(path, limit=1)[0]["perturbed_answers"] == ["x", "y"]


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [
        {"question": "q", "answer": "a"},
        {"question": "r", "answer": "  "},
        {"question": "", "answer": 3},
        {"question": "s", "answer": None},
        {"question": "s"},
        {"question": "s", "answer": float("nan")},
        {"question": "q", "answer": "a"},
        {"question": "t", "answer": "half \ud83d"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"question": "u", "ans')
    found = problems_of(path)
    assert [where for where, _ in found] == [
        "line 2, field 'answer'",
        "line 3, field 'question'",
        "line 3, field 'answer'",
        "line 4, field 'answer'",
        "line 5, field 'answer'",
        "line 6, field 'answer'",
        "line 7",
        "line 8, field 'answer'",
        "line 9",
    ]
    whats = [what for _, what in found]
    assert whats[:3] == ["is empty", "is empty", "is 3 of type int, not a text"]
    assert whats[3:7] == ["is missing", "is missing", "is NaN", "says the same as line 1"]
    assert "half of a character" in whats[7]
    assert "invalid JSON" in whats[8]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        (None, "is missing"),
        ([], "is an empty list"),
        ("hi", "'hi', not a list"),
        ([{"role": "user", "content": "q"}], "no assistant turn"),
        ([{"role": "assistant", "content": "a"}], "nothing before the answer"),
        ([{"from": "human", "value": "q"}], "turn 1: role or content is missing"),
        (["q"], "turn 1: role or content is missing"),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}], "turn 2: role or content is empty"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": [1]}],
            "turn 2 calls tools",
        ),
    ],
)
def test_messages_that_cannot_be_used(tmp_path: Path, messages: object, what: str) -> None:
    fine = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = written(tmp_path / "a.jsonl", [{"messages": fine}, {"messages": messages}])
    ((where, said),) = problems_of(path)
    assert where == "line 2, field 'messages'"
    assert what in said


def test_messages_beside_an_answer(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    same = read_examples(written(tmp_path / "a.jsonl", [{"messages": turns, "answer": "a"}]))
    assert same["messages"][0] == turns[:1]
    path = written(tmp_path / "b.jsonl", [{"messages": turns, "answer": "b"}])
    assert "different answers" in problems_of(path)[0][1]


def test_perturbed_answers_that_cannot_be_used(tmp_path: Path) -> None:
    base = {"question": "q", "answer": "a"}
    rows = [{**base, "perturbed_answer": ["b", ""]}, {**base, "question": "r"}]
    found = problems_of(written(tmp_path / "a.jsonl", rows))
    assert found == [
        ("line 1, field 'perturbed_answer'", "entry 2 is empty"),
        ("line 2, field 'perturbed_answer'", "is missing"),
    ]


def test_duplicates(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "n": i} for i in range(3)] + [{"question": "r", "answer": "a", "n": 9}]
    path = written(tmp_path / "a.jsonl", rows)
    assert problems_of(path) == [("line 2", "says the same as line 1"), ("line 3", "says the same as line 1")]
    kept = read_examples(path, duplicates="drop")
    assert (kept["n"], kept["source_line"]) == ([0, 9], [1, 4])


def test_many_problems_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"question": "q", "answer": ""}] * 500)
    found = problems_of(path)
    assert len(found) == 21
    assert found[-1][1] == "480 more lines have the same problem, up to 500"


def test_columns_of_mixed_types(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a", "n": 1}, {"question": "r", "answer": "a", "n": "x"}]
    ((where, what),) = problems_of(written(tmp_path / "a.jsonl", rows))
    assert where == "field 'n'"
    assert "int, str" in what


def test_empty_sources(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", ""), ("a.csv", "question,answer\n"), ("a.json", "[]")):
        (tmp_path / name).write_text(content)
        assert problems_of(tmp_path / name) == [("", "holds no examples")]
    with pytest.raises(BadInput, match="holds no examples"):
        read_examples(Dataset.from_dict({"question": [], "answer": []}))


def test_options_are_checked(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", [{"text": "t"}])
    with pytest.raises(BadInput) as caught:
        read_examples(path, duplicates="keep", limit=0)  # type: ignore[arg-type]
    assert [problem.where for problem in caught.value.problems] == ["duplicates", "limit"]


def test_role_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"^retain: "):
        read_examples(tmp_path / "none.jsonl", role="retain")


@pytest.mark.real_data
def test_tofu_as_published() -> None:
    folder = os.environ.get("EXPUNGE_DATA")
    if not folder or not Path(folder, "tofu").is_dir():
        pytest.skip("set EXPUNGE_DATA to a folder that holds tofu/ to read the published files")
    sizes = {"forget01": 40, "forget05_perturbed": 200, "retain90": 3600, "full": 4000, "world_facts_perturbed": 117}
    sets = {name: read_examples(Path(folder, "tofu", f"{name}.json")) for name in sizes}
    assert {name: len(rows) for name, rows in sets.items()} == sizes
    assert set(sets["forget01"]["id"]) < set(sets["full"]["id"])
    assert set(sets["forget05_perturbed"]["id"]) < set(sets["full"]["id"])
    assert {len(row) for row in sets["forget05_perturbed"]["perturbed_answers"]} == {5}
    assert not set(sets["forget05_perturbed"]["id"]) & set(sets["retain90"]["id"])
