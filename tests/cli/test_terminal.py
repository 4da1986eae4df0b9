from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.cli.terminal import Shown, paragraphs, show_json, show_markdown, show_table, wrap
from expunge.errors import Problem


@given(st.lists(st.text("abc -.", max_size=60), max_size=30).map(" ".join))
def test_wrapping_loses_no_word_and_keeps_80_columns(text: str) -> None:
    wrapped = wrap(text)
    assert wrapped.split() == text.split()
    assert all(len(line) <= 80 or " " not in line.strip() for line in wrapped.splitlines())


def test_away_from_a_terminal_each_stage_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown() as shown:
        shown.stage("loading [bold]x[/bold]")
        shown.step(1, 2, {"loss": 1.0})
        shown.warn(Problem("forget", "is small", "add more", "warning"))
        shown.say("done")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["loading [bold]x[/bold] ...", "warning: forget: is small -> add more", "done"]


def test_of_several_processes_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with Shown() as shown:
        shown.stage("loading")
        shown.say("done")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_go_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Shown() as shown:
        assert shown.bars is not None
        shown.stage("a [1/2]")
        shown.step(1, 2, {"loss": 1.0})
        shown.warn(Problem("forget", "is [small]", "add more", "warning"))
        shown.stage("b")
    out, err = capsys.readouterr()
    assert out == ""
    assert "a [1/2]:" in err
    assert "is [small]" in err


def test_json_never_holds_what_json_does_not_know() -> None:
    with pytest.raises(ValueError):
        show_json({"x": float("nan")})


def test_cells_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", ("a",), [("0.5 [0.4, 0.6] [red]",)])
    assert "[0.4, 0.6] [red]" in capsys.readouterr().out


WIDE = """## Title

| Method | First number of many | Second | Third | Fourth |
| --- | ---: | ---: | ---: | --- |
| retrain, other seed | 10.00 [−12.00, 13.00] | 20.00 [−12.00, 13.00] | 30.00 [−12.00, 13.00] | a\\|b |

After it, words that go on for longer than a line of eighty columns would hold if nobody broke it.
"""


def test_a_page_of_markdown_fits_and_keeps_cells_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show_markdown(WIDE)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "Title"
    for cell in ("10.00 [−12.00, 13.00]", "20.00 [−12.00, 13.00]", "30.00 [−12.00, 13.00]", "a|b"):
        # What the number belongs to stands beside it, in whichever block it is.
        assert [line for line in lines if cell in line and "retrain, other seed" in line]
    assert not [line for line in lines if "---" in line or "| " in line]
    assert " ".join(WIDE.split("\n\n")[-1].split()) in " ".join(" ".join(lines).split())


def test_a_name_that_is_copied_stays_whole(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", ("name", "a", "b"), [("a_name_of_thirty_letters_or_so", "words " * 30, "more " * 40)], whole=True)
    out = capsys.readouterr().out
    assert "a_name_of_thirty_letters_or_so" in out
    assert max(map(len, out.splitlines())) <= 80


def test_paragraphs_join_lines() -> None:
    def command() -> None:
        """One.

        Two goes on
        here.
        """

    assert paragraphs(command) == "One.\n\nTwo goes on here."
