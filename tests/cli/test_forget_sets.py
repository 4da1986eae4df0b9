from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.cli.app import app
from expunge.data import known_sets
from expunge.forget_sets.base import FORGET_SETS


def call(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["forget-sets", *args])
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("wine") / "wine.csv"
    known_sets.bundled_table("wine").remove_columns(["id", "source_file", "source_line"]).to_csv(str(path), index=False)
    return str(path)


def test_the_list_is_what_is_there() -> None:
    code, out, _ = call("--json")
    assert code == 0
    found = json.loads(out)
    assert [s["name"] for s in found] == FORGET_SETS.names()
    assert {"random", "class", "worst_case", "easiest", "margin"} <= set(FORGET_SETS.names())
    assert all(f["description"] for s in found for f in s["settings"])
    code, out, _ = call()
    assert code == 0
    assert "worst_case" in out
    code, out, _ = call("worst_case")
    assert "unlearn_epochs" in out


def test_a_set_is_chosen_and_the_next_command_named(wine: str, tmp_path: Path) -> None:
    out = str(tmp_path / "set")
    code, shown, err = call("random", "--data", wine, "--inputs", "tabular", "--share", "0.2", "--out", out)
    assert code == 0, err
    assert "36 examples chosen by random: forget 36, retain 142" in shown
    # It is copied, so it stands on one line however long the folder's name is.
    assert f"  expunge unlearn --recipe {out}/request.yaml --model MODEL --method METHOD" in shown.splitlines()
    again: Any = call("random", "--data", wine, "--inputs", "tabular", "--share", "0.2", "--out", out, "--json")
    assert again[0] == 0
    found = json.loads(again[1])
    assert found["examples"] == {"forget": 36, "retain": 142}
    assert Path(found["files"]["forget"]).is_file()
    assert "holds this forget set already" in again[2]


def test_what_is_wrong_is_an_exit_code_of_two(wine: str, tmp_path: Path) -> None:
    common = ["--data", wine, "--inputs", "tabular", "--out", str(tmp_path / "set")]
    for args, words in (
        (["class", *common, "--set", "labels=9"], "labels: 9 is not there"),
        (["random", "--share", "0.5"], "--data: is missing, and --share given -> give the training set"),
        (["random", *common, "--share", "1.5"], "share: input should be less than 1 (given: 1.5)"),
        (["worst_case", *common], "give --model MODEL"),
        (["random", *common, "--share", "0.5", "--count", "3"], "give one of them"),
        (["random", *common, "--set", "verdict.alpha=0.1"], "settings of audits"),
        (["nosuch", *common], "forget set selector: there is no 'nosuch'"),
        (["--data", wine], "nothing says how to choose"),
    ):
        code, _, err = call(*args)
        assert (code, words in err) == (2, True), err
    assert not (tmp_path / "set").exists()
