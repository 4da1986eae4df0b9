from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from expunge.data import read_request
from expunge.errors import BadInput
from expunge.requests import preflight


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(letter: str, answer: str = "a") -> dict[str, str]:
    return {"question": letter, "answer": answer}


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    rows: Any = [pair("a")]
    with pytest.raises(BadInput, match=r"forget: source: is a list -> .*Dataset\.from_list\(rows\)"):
        read_request(rows)
    nothing: Any = None
    with pytest.raises(BadInput, match="forget: is None"):
        read_request(nothing)
    kind: Any = "table"
    with pytest.raises(BadInput, match="inputs: 'table' is nothing that a model is given -> did you mean tabular"):
        read_request(written(tmp_path / "f.jsonl", pair("a")), inputs=kind)


def test_a_request_from_three_formats(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text("question,answer\nh,a\n")
    request = read_request(
        written(tmp_path / "f.jsonl", pair("f"), pair("g")),
        written(tmp_path / "r.json", pair("r")),
        tmp_path / "h.csv",
        scenario="concept",
        name="mine",
    )
    assert {role: len(rows) for role, rows in request.sets().items()} == {"forget": 2, "retain": 1, "holdout": 1}
    assert (request.scenario, request.name) == ("concept", "mine")
    assert read_request(tmp_path / "f.jsonl", limit=1).sets().keys() == {"forget"}


def test_problems_of_all_files_and_the_overlap_come_together(tmp_path: Path) -> None:
    forget = written(tmp_path / "f.jsonl", pair("f"), pair("g"))
    retain = written(tmp_path / "r.jsonl", pair("r"), pair("s", ""), "{")
    holdout = written(tmp_path / "h.jsonl", pair("h"), pair("g"))
    with pytest.raises(BadInput) as caught:
        read_request(forget, retain, holdout, scenario="nothing")  # type: ignore[arg-type]
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    assert f"retain: {retain}, line 2, field 'answer': is empty" in text
    assert f"retain: {retain}, line 3: invalid JSON" in text
    assert "'nothing' is not a scenario" in text
    assert f"{forget} line 2 = {holdout} line 2" in text


def test_a_broken_forget_file_and_a_missing_retain_file_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        read_request(written(tmp_path / "f.jsonl", "x"), tmp_path / "r.jsonl")
    assert [problem.where.split(":")[0] for problem in caught.value.problems] == ["forget", "retain"]


def test_columns_for_all_sets_or_for_one(tmp_path: Path) -> None:
    forget = written(tmp_path / "f.jsonl", {"q": "f", "gold": "a", "again": "p"})
    retain = written(tmp_path / "r.jsonl", {"q": "r", "said": "b"})
    columns = {"prompt": "q", "answer": "gold", "retain.answer": "said", "forget.paraphrased_answer": "again"}
    request = read_request(forget, retain, columns=columns)
    assert request.retain is not None
    assert (request.forget[0]["answer"], request.retain[0]["answer"]) == ("a", "b")
    assert request.forget[0]["paraphrased_answer"] == "p"
    with pytest.raises(BadInput, match="names no column of a set"):
        read_request(forget, columns={"keep.answer": "gold"})


def test_unknown_columns_are_reported_once_per_set(tmp_path: Path) -> None:
    forget = written(tmp_path / "f.jsonl", pair("f"))
    retain = written(tmp_path / "r.jsonl", pair("r"))
    with pytest.raises(BadInput) as caught:
        read_request(forget, retain, columns={"anser": "answer"})
    assert [problem.where for problem in caught.value.problems] == ["forget: columns", "retain: columns"]


@pytest.mark.real_data
def test_tofu_requests() -> None:
    folder = os.environ.get("EXPUNGE_DATA")
    if not folder or not Path(folder, "tofu").is_dir():
        pytest.skip("set EXPUNGE_DATA to a folder that holds tofu/ to read the published files")
    tofu = Path(folder, "tofu")
    request = read_request(tofu / "forget01_perturbed.json", tofu / "retain99.json", scenario="entity")
    assert (len(request.forget), len(request.retain or ())) == (40, 3960)
    assert [p for p in preflight(request) if p.severity == "error"] == []
    with pytest.raises(BadInput, match="share 40 example"):
        read_request(tofu / "forget01.json", tofu / "full.json")


def test_sets_come_from_the_splits_of_one_source(tmp_path: Path) -> None:
    known, unseen = ({"question": [f"{k}{i}?" for i in range(3)], "answer": ["yes"] * 3} for k in "ab")
    DatasetDict(train=Dataset.from_dict(known), test=Dataset.from_dict(unseen)).save_to_disk(tmp_path / "both")
    request = read_request(tmp_path / "both", tmp_path / "both", split={"forget": "train", "retain": "test"})
    assert (request.forget["prompt"][0], request.retain["prompt"][0]) == ("a0?", "b0?")
    with pytest.raises(BadInput) as error:
        read_request(tmp_path / "both", tmp_path / "both", split={"forget": "dev", "holdout": "test", "kept": "x"})
    text = str(error.value)
    for part in (
        "splits.holdout: is not given -> name a split of forget, retain",
        "splits.kept: is not a set of this request",
        "has the splits train, test, not 'dev' -> choose one of them: --set splits.forget=train",
        "has the splits train, test; none was chosen -> choose one of them: --set splits.retain=train",
    ):
        assert part in text
