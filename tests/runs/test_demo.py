"""The embedded default: its world, its refusals, and (slow) the whole of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.data.request_files import read_request
from expunge.errors import BadInput
from expunge.methods.base import settle
from expunge.methods.run import METHODS
from expunge.runs import demo
from expunge.runs.demo import forgetting, make_world, run_demo


def test_the_world_is_written_once_and_reads_back(tmp_path: Path) -> None:
    files = make_world(tmp_path, 20, 3)
    request = read_request(files["forget"], files["retain"], files["holdout"])
    assert set(request.sets()) == {"forget", "retain", "holdout"}
    before = {f: f.stat().st_mtime_ns for f in files.values()}
    assert make_world(tmp_path, 20, 3) == files
    assert before == {f: f.stat().st_mtime_ns for f in files.values()}
    with pytest.raises(BadInput, match="other settings"):
        make_world(tmp_path, 30, 3)


def test_numbers_out_of_range_are_refused_together(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        run_demo(tmp_path / "out", people=3, oracles=0, method="npoo")
    assert [p.where for p in refused.value.problems] == ["people", "oracles", "method"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"method": "laf"}, "method laf: does not serve causal_lm"),
        ({"overrides": ["zz=1"]}, "zz: is not a setting of npo"),
        ({"overrides": ["stop.evry=1"]}, "did you mean stop.every"),
    ],
)
def test_what_cannot_forget_is_refused_before_anything_is_trained(
    tmp_path: Path, given: dict[str, Any], part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "run_trainings", lambda *_: pytest.fail("a model was trained"))
    with pytest.raises(BadInput, match=part):
        run_demo(tmp_path / "out", people=20, **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(BadInput, match="is not empty and not the folder of a demo"):
        run_demo(tmp_path, people=20)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_method_takes_the_demo_settings(method: str) -> None:
    settle(METHODS.get(method), forgetting(method))


@pytest.mark.slow
def test_the_whole_demo(tmp_path: Path) -> None:
    done = run_demo(tmp_path / "demo", people=20, oracles=1)
    verdict = done.report.verdict or {}
    assert verdict["result"] in ("removed", "not removed", "inconclusive")
    assert {"original", "unlearned", "oracle"} <= set(done.report.models)
    assert (tmp_path / "demo/run/report.html").stat().st_size > 10_000
    assert {"forgetting", "proving", "retraining"} <= set(done.report.cost)
    assert not [f for f in done.report.findings if f.status == "crashed"]
