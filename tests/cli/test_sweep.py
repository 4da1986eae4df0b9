"""``expunge sweep``, and ``expunge compare --level`` on what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from expunge.cli.app import app


@pytest.fixture
def recipe(files: Any, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    fields = files.fields(settings={"max_steps": 1, "learning_rate": 1e-4}, audits=["probability"])
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return str(path)


def call(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def test_a_sweep_and_its_leaderboard(recipe: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = ["sweep", recipe, "--methods", "npo,gradient_ascent", "--set", "npo.beta=0.1,1", "--seeds", "0,1",
               "--level", "9", "--out", out, "--jobs", "1"]  # fmt: skip
    done = call(*command)
    assert done.exit_code == 0, done.stderr
    assert "npo" in done.stdout
    assert "0 of 2" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= max(80, len(f"Page: {out}/leaderboard.html"))
    found = json.loads(call(*command, "--json").stdout)
    assert found["ran"] == 0, "everything is there already"
    assert len(found["runs"]) == 6
    again = call("compare", out, "--level", "9", "--json")
    assert {r["run"] for r in json.loads(again.stdout)["runs"]} == {r["run"] for r in found["runs"]}
    page = tmp_path / "board.html"
    assert call("compare", out, "--level", "holdout", "--html", str(page)).exit_code == 0
    assert "<svg" in page.read_text(encoding="utf-8")
    assert "gradient_ascent" in call("compare", out).stdout, "without a level, the runs stand side by side"


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("--methods", "npoo"), "did you mean npo"),
        (("--seeds", "a"), "--seeds"),
        (("--level", "orakle"), "--level: is 'orakle'"),
        (("--engine", "spark"), "--engine"),
        (("--level", "oracle"), "no oracle is there"),
    ],
)
def test_what_the_user_can_correct_leaves_with_2(args: tuple[str, ...], part: str, recipe: str, tmp_path: Path) -> None:
    done = call("sweep", recipe, "--out", str(tmp_path / "out"), *args)
    assert done.exit_code == 2
    assert part in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_everything_wrong_with_a_sweep_is_said_at_once(recipe: str, tmp_path: Path) -> None:
    out = ("--out", str(tmp_path / "out"))
    wrong = (
        "--methods",
        "npoo",
        "--seeds",
        "a",
        "--level",
        "orakle",
        "--on",
        "rougee/x",
        "--keep",
        "y",
        "--set",
        "z=1",
    )
    done = call("sweep", recipe, *out, *wrong, "--json")
    assert done.exit_code == 2
    found = [problem["where"] for problem in json.loads(done.stdout)["problems"]]
    assert set(found) == {"--level", "--on", "--keep", "--seeds", "--methods"}
    done = call("sweep", str(tmp_path / "no.yaml"), *out, "--json")
    (problem,) = json.loads(done.stdout)["problems"]
    assert "no.yaml" in problem["where"]


def test_a_recipe_without_a_yardstick_needs_a_level(recipe: str, files: Any, tmp_path: Path) -> None:
    Path(recipe).write_text(yaml.safe_dump({**files.fields(), "holdout": None}), encoding="utf-8")
    done = call("sweep", recipe, "--out", str(tmp_path / "out"))
    assert done.exit_code == 2
    assert "neither an oracle nor a holdout" in " ".join(done.stderr.split())
