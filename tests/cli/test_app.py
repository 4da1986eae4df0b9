from __future__ import annotations

import json
import subprocess
import sys
import time
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from expunge.cli.app import app, describe
from expunge.errors import BadInput, Diverged, ExpungeError, MissingExtra, NotRemoved, Problem

COMMANDS = ("demo", "unlearn", "audit", "compare", "methods", "audits", "selections", "forget-sets", "doctor", "bench",
            "reproduce", "sweep")  # fmt: skip
INSIDE = (("bench", "tofu"), ("import", "open-unlearning"))


def call(*args: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(args))
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def test_help_names_every_command_and_the_exit_codes() -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in (*COMMANDS, *(group for group, _ in INSIDE)))
    assert "0 done, 2 input to correct, 3 verdict other than required" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", [*((name,) for name in COMMANDS), *INSIDE])
def test_every_command_has_help_within_80_columns(command: tuple[str, ...]) -> None:
    code, out, _ = call(*command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "--json" in out
    assert "…" not in out  # a default that does not fit is cut off
    # Paragraphs are wrapped at the width of the terminal, not where the source has its line ends.
    paragraphs = out[: out.index("╭─")].splitlines()
    ends = [(line.rstrip(), after.split()) for line, after in pairwise(paragraphs) if line.strip() and after.strip()]
    assert not [line for line, words in ends if len(f"{line} {words[0]}") < 79]


def test_no_command_shows_help() -> None:
    code, out, _ = call()
    assert code == 0
    assert "Usage: expunge" in out


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['expunge', 'unlearn', '--help']\n"
        "from expunge.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'datasets', 'scipy'} & set(sys.modules)))"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert time.perf_counter() - start < 10


def test_version() -> None:
    import expunge

    assert call("--version")[1].strip() == expunge.__version__


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("unlern",), "No such command 'unlern'. Did you mean 'unlearn'?"),
        (("unlearn", "--metod", "npo"), "--method"),
        (("unlearn", "extra"), "unexpected extra argument"),
        (("unlearn", "--seed", "x"), "--seed"),
        (("unlearn", "--require", "maybe"), "'maybe' is not one of 'removed'"),
        (("compare",), "Missing argument"),
        (("bench", "tofo"), "did you mean tofu"),
        (("methods", "npoo"), "did you mean npo"),
        (("audits", "ruge"), "did you mean rouge"),
        (("reproduce", "npoo"), "did you mean npo"),
        (("reproduce",), "NAME: is missing"),
        (("unlearn", "--recipe", "no.yaml"), "no.yaml: is not there"),
        (("unlearn",), "model: is missing"),
        (("bench", "tofu", "--seeds", "a"), "--seeds: 'a' is not a whole number"),
    ],
)
def test_what_the_user_can_correct_leaves_with_2(args: tuple[str, ...], part: str) -> None:
    code, out, err = call(*args)
    assert code == 2
    assert part in err
    assert "Traceback" not in err
    assert out == ""


def test_errors_are_json_too() -> None:
    code, out, _ = call("unlearn", "--require", "maybe", "--json")
    (problem,) = json.loads(out)["problems"]
    assert problem["where"].endswith("unlearn")
    assert problem["what"] == "Invalid value for '--require': 'maybe' is not one of 'removed'."
    code, out, err = call("unlearn", "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 2
    assert found["problems"][0]["where"] == "recipe: model"
    assert "model: is missing" in err
    assert json.loads(call("unlearn", "--json", "--metod", "x")[1])["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "code", "part"),
    [
        (BadInput("x"), 2, "x"),
        (MissingExtra("install it"), 2, "install it"),
        (NotRemoved("x"), 3, "x"),
        (Diverged("x"), 1, "x"),
        (ExpungeError("disk"), 1, "disk"),
        (MemoryError(), 1, "micro_batch_size"),
        (KeyError("x"), 1, "this is a bug"),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: int, part: str) -> None:
    message, found = describe(error)
    assert found == code
    assert part in message


def test_problems_are_wrapped_and_start_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [Problem(f"file.jsonl line {k}", "says " + "much " * 20, "say less") for k in (1, 2)]

    def fail(*_: object, **__: object) -> None:
        raise BadInput(problems)

    monkeypatch.setattr("expunge.cli.listing.describe_method", fail)
    done = CliRunner().invoke(app, ["methods", "npo"])
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line[:17] for line in lines if not line.startswith("    ")] == ["file.jsonl line 1", "file.jsonl line 2"]


@pytest.mark.parametrize("where", [("--debug", "methods", "npo"), ("methods", "npo", "--debug")])
def test_debug_shows_the_traceback_wherever_it_stands(where: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("broken inside")

    monkeypatch.setattr("expunge.cli.listing.describe_method", fail)
    code, _, err = call(*where)
    assert code == 1
    assert "Traceback" in err
    code, _, err = call("methods", "npo")
    assert code == 1
    assert "Traceback" not in err
    assert "RuntimeError: broken inside -> this is a bug" in err


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    code = "import sys; sys.argv = ['expunge', '--help']\nfrom expunge.cli.app import main; main()"
    reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert reader.stdout is not None
    reader.stdout.close()
    err = reader.stderr.read() if reader.stderr else ""
    reader.wait(60)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
