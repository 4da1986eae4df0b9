from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.cli.app import app
from expunge.cli.jobs import _file_name
from expunge.errors import BadInput


def arguments(files: Any, out: Path) -> list[str]:
    paths = [a for role in ("model", "forget", "retain", "holdout") for a in (f"--{role}", str(getattr(files, role)))]
    quick = ["--set", "epochs=2", "--set", "batch_size=4", "--audit", "probability", "--audit", "rouge"]
    return ["unlearn", *paths, *quick, "--out", str(out)]


def call(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(args))
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def test_from_files_to_a_report(files: Any, tmp_path: Path) -> None:
    code, out, err = call(*arguments(files, tmp_path / "run"))
    assert code == 0, err
    for part in ("Retained knowledge:", "Removal level: approximate", "Time: forgetting", "report.html", "answer nll"):
        assert part in out
    assert max(len(line) for line in out.splitlines() if "/" not in line) <= 80
    assert "forgetting with npo" in err
    assert (tmp_path / "run" / "report.html").is_file()


def test_json_is_all_there_is_on_stdout(files: Any, tmp_path: Path) -> None:
    code, out, _ = call(*arguments(files, tmp_path / "run"), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["result"] == found["verdict"]["result"]
    assert found["model"] == str(tmp_path / "run" / "model")
    assert Path(found["report_html"]).is_file()
    assert found["scalars"]["unlearned"]["probability.forget_probability"]["n"] == 10
    assert found["cost"]["forgetting"]["forwards"] > 0
    assert found["diverged"] is False
    code, again, err = call(*arguments(files, tmp_path / "run"), "--json")
    assert code == 0
    assert json.loads(again) == found
    assert "holds this run already" in err


def test_a_recipe_file_and_options(files: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"model: {files.model}\nforget: {files.forget}\nmethod: gradient_ascent\naudits: [probability]\n"
        "settings: {epochs: 1, learning_rate: 1e-6}\n"
    )
    code, out, err = call("unlearn", "--recipe", str(recipe), "--method", "simnpo", "--retain", str(files.retain),
                          "--out", str(tmp_path / "run"), "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["method"] == "simnpo"


def test_everything_wrong_at_once(files: Any, tmp_path: Path) -> None:
    given = arguments(files, tmp_path / "run")
    code, out, err = call(*given, "--set", "oops", "--dtype", "float33", "--set", "bta=1", "--method", "npo")
    assert code == 2
    assert out == ""
    for part in ("--set oops", "given: 'float33'", "bta: is not a setting of npo or of training -> did you mean beta"):
        assert part in err
    assert not (tmp_path / "run").exists()


def test_the_required_verdict(files: Any, tmp_path: Path) -> None:
    code, out, err = call(*arguments(files, tmp_path / "run"), "--require", "removed", "--json")
    assert json.loads(out)["result"] != "removed"
    assert code == 3
    assert "'removed' was required" in err


def test_a_folder_with_another_run(files: Any, tmp_path: Path) -> None:
    given = arguments(files, tmp_path / "run")
    assert call(*given)[0] == 0
    code, _, err = call(*given, "--set", "beta=0.3")
    assert code == 2
    assert "--overwrite" in err
    assert call(*given, "--set", "beta=0.3", "--overwrite")[0] == 0


def test_training_that_breaks_down_leaves_with_1_and_a_report(files: Any, tmp_path: Path) -> None:
    given = [*arguments(files, tmp_path / "run"), "--method", "gradient_ascent", "--set", "learning_rate=1e30"]
    code, out, err = call(*given, "--set", "clip_norm=null", "--json")
    assert code == 1
    assert json.loads(out)["diverged"] is True
    assert "the model is the original, unchanged, because training stopped: diverged" in " ".join(err.split())


def test_ctrl_c_says_how_to_go_on(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments(files, tmp_path / "run")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("expunge.runs.job.gather", interrupt)
        code, out, err = call(*given)
    assert code == 1
    assert out == ""
    again = f"expunge unlearn --recipe {tmp_path}/run/recipe.yaml --out {tmp_path}/run"
    assert again in err
    assert call(*again.split()[1:])[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("expunge.runs.job.check", interrupt)
        code, _, err = call(*arguments(files, tmp_path / "other"))
    assert code == 1
    assert "Nothing was written" in err


def test_a_process_that_is_interrupted_goes_on_in_another(files: Any, tmp_path: Path) -> None:
    given = [
        *arguments(files, tmp_path / "run"),
        "--json",
        "--set",
        "epochs=80",
        "--set",
        "checkpoint_every=5",
        "--set",
        "stop.every=0",
    ]
    first = subprocess.Popen(
        [sys.executable, "-m", "expunge", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run that a shell started in the background is deaf to Ctrl-C, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.time() + 120
    while not any((tmp_path / "run").glob("checkpoints/step-*")) and time.time() < end:
        assert first.poll() is None, first.stderr.read() if first.stderr else ""
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 1, err
    assert out == ""
    assert "keeps what was done" in " ".join(err.split())
    assert "Traceback" not in err

    code, out, err = call(*given)
    assert code == 0, err
    assert any("stopped and resumed" in note for note in json.loads(out)["notes"])


@pytest.mark.slow
def test_in_a_process_of_its_own(files: Any, tmp_path: Path) -> None:
    given = [sys.executable, "-m", "expunge", *arguments(files, tmp_path / "run"), "--json"]
    done = subprocess.run(given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]
    assert "Loading weights" not in done.stderr


def test_audit(files: Any, tmp_path: Path) -> None:
    given = ["audit", "--model", str(files.model), "--original", str(files.model), "--forget", str(files.forget)]
    given += ["--holdout", str(files.holdout), "--audit", "probability"]
    code, out, err = call(*given, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["folder"] is None
    assert found["removal_level"] == "unknown"
    code, out, _ = call(*given, "--removal-level", "guard", "--out", str(tmp_path / "a"), "--require", "removed")
    assert code == 3
    assert "Not removed" in out
    assert (tmp_path / "a" / "report.html").is_file()
    code, _, err = call(*given, "--removal-level", "total")
    assert code == 2
    assert "'total' is not one" in err
    code, _, err = call(*given, "--set", "epochs=3")
    assert code == 2
    assert "settings: is not used by `expunge audit`" in err


def test_a_name_becomes_a_folder_name() -> None:
    assert _file_name("people of 2024/05") == "people-of-2024-05"
    assert _file_name("../x") == "x"
    with pytest.raises(BadInput, match="give --out"):
        _file_name("../..")
