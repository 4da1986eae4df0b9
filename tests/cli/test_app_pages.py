"""What README and docs/ name is there: commands, options, names, settings, modules, files, headings, results."""

from __future__ import annotations

import ast
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from expunge.audits.suite import AUDITS
from expunge.cli.app import app
from expunge.forget_sets.base import FORGET_SETS
from expunge.methods.run import METHODS
from expunge.reproductions.runner import REPRODUCTIONS
from expunge.selections.base import SELECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = {"methods": METHODS, "audits": AUDITS, "selections": SELECTIONS, "forget-sets": FORGET_SETS,
         "reproduce": REPRODUCTIONS}  # fmt: skip
VALUES = {"--method": METHODS, "--methods": METHODS, "--audit": AUDITS}
# What stands for something that the reader fills in.
OPEN = re.compile(r"^[A-Z_]+$|^my_|…|^\.\.\.|[*|<]")


def commands(text: str) -> Iterator[str]:
    """Every command line of a page: lines of code blocks, joined where they go on, and code within sentences."""
    text = text.replace("\\|", "|")
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
    for line in lines:
        found = re.match(r"\s*(?:torchrun .*--no-python )?((?:expunge|make|python benchmarks/\S+)(?: .*)?)$", line)
        if found and not re.match(r"expunge\.|expunge\[", found[1]):
            yield found[1]


def wrong(command: str) -> list[str]:
    """What a command line names that is not there."""
    words = shlex.split(re.sub(r"\s{2,}[^-].*$|\s#.*$", "", command))
    if words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [f"make {w}" for w in words[1:] if "=" not in w and w.isalpha() and w not in targets][:1]
    if words[0] == "python":
        script = ROOT / words[1]
        if not script.is_file():
            return [words[1]]
        source = script.read_text(encoding="utf-8")
        options = set(re.findall(r"--[a-z][a-z-]*", source))
        return [f"{words[1]} {w}" for w in words[2:] if w.startswith("--") and w.split("=")[0] not in options]
    return _wrong_words(get_command(app), words[1:], ())


def _wrong_words(command: Any, words: list[str], path: tuple[str, ...]) -> list[str]:
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
    found: list[str] = []
    method = words[words.index("--method") + 1] if "--method" in words[:-1] else None
    first, at = True, 0
    while at < len(words):
        word, at = words[at], at + 1
        if word.startswith("--"):
            name, _, value = word.partition("=")
            if name == "--debug":
                continue
            if name not in options:
                found.append(f"{' '.join(path)} {name}")
                continue
            if not options[name].is_flag:
                if not value and at < len(words):
                    value, at = words[at], at + 1
                if name in VALUES and not OPEN.search(value):
                    found += [f"{name} {v}" for v in value.split(",") if v not in VALUES[name].names()]
                if name == "--set":
                    found += _wrong_setting(value, method, path)
        elif hasattr(command, "get_command"):
            if OPEN.search(word):
                return found
            inner = command.get_command(None, word) if word in command.list_commands(None) else None
            return found + ([f"expunge {word}"] if inner is None else _wrong_words(inner, words[at:], (*path, word)))
        elif first:
            first = False
            if path and path[0] in NAMED and not OPEN.search(word) and word not in NAMED[path[0]].names():
                found.append(f"{path[0]} {word}")
    return found


def _wrong_setting(given: str, method: str | None, path: tuple[str, ...]) -> list[str]:
    key, equals, _ = given.partition("=")
    if not equals:
        return [] if OPEN.search(given) else [f"--set {given}"]
    parts = key.split(".")
    if OPEN.search(parts[-1]) or path[:1] != ("unlearn",):
        known = set(AUDITS.names())
        return [f"--set {key}"] if parts[0] == "audits" and parts[1] not in known and not OPEN.search(parts[1]) else []
    if parts[0] == "audits":
        fields = AUDITS.get(parts[1]).Config.model_fields
        return [] if parts[2] in fields else [f"--set {key}"]
    if parts[0] in {"verdict", "limits", "columns", "splits", "following"} or method is None:
        return []
    from expunge.methods.base import settle

    configured, train = settle(METHODS.get(method), {})
    known = {*type(configured.config).model_fields, *type(train).model_fields}
    return [] if parts[0] in known else [f"--set {key} of {method}"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_on_the_pages_are_there(page: Path) -> None:
    found = [
        f"{missing}   in: {line}" for line in commands(page.read_text(encoding="utf-8")) for missing in wrong(line)
    ]
    assert not found, "\n".join(found)


def test_commands_in_messages_are_there() -> None:
    found = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            said = "".join(
                part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else "X" for part in parts
            )
            for line in re.findall(r"`(expunge [^`]+)`", said):
                found += [f"{path.name}:{node.lineno}: {missing}   in: {line}" for missing in wrong(line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "command",
    [
        "expunge unlern",
        "expunge unlearn --modl X",
        "expunge unlearn --method npoo",
        "expunge unlearn --method npo --set retian=kl",
        "expunge audit … --audit rogue",
        "expunge audit --set audits.rogue.words=x",
        "expunge bench tofuu",
        "expunge bench tofu --spilt forget05",
        "expunge methods npoo",
        "expunge reproduce npoo",
        "make tets",
        "python benchmarks/none.py",
        "python benchmarks/attacks.py --persons 2",
    ],
)
def test_what_is_not_there_is_seen(command: str) -> None:
    assert list(commands(f"Text and `{command}`.")) == [command]
    assert list(commands(f"```\n{command}   # why\n```\n")) == [f"{command}   # why"]
    assert wrong(command)
    assert wrong(f"{command}   # why")


# ---- links -----------------------------------------------------------------------------------------------------


@cache
def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in found}


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            dead.append(link)
    assert not dead, dead


def test_every_result_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    results = [path for path in (ROOT / "docs" / "results").iterdir() if path.is_file()]
    assert results
    loose = [path.name for path in results if path not in linked]
    assert not loose, f"link these from a page, or delete them: {loose}"


def test_every_page_is_linked() -> None:
    linked = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links(page)}
    loose = [page.relative_to(ROOT).as_posix() for page in PAGES[1:] if page not in linked]
    assert not loose, f"no page links to these: {loose}"


def test_modules_and_files_on_the_pages_are_there() -> None:
    source = ROOT / "src" / "expunge"
    gone = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+/[\w/]+\.\w+)`", text):
            bases = [base for base in (ROOT, source, page.parent) if (base / name.partition("/")[0]).is_dir()]
            if bases and not any((base / name).exists() for base in bases):
                gone.append(f"{page.name}: {name}")
        gone += [
            f"{page.name}: {name}"
            for name in re.findall(r"\bexpunge(?!\.json)(?:\.\w+)+", text)
            if not importable(name)
        ]
        for audit, key in re.findall(r"audits\.(\w+)\.(\w+)=", text):
            if audit != "NAME" and key not in AUDITS.get(audit).Config.model_fields:
                gone.append(f"{page.name}: audits.{audit}.{key}")
    assert not gone, "\n".join(gone)


def importable(dotted: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


def test_what_is_not_a_name_is_seen() -> None:
    assert importable("expunge.data.scenarios.whole_class")
    assert not importable("expunge.data.scenarios.half_class")
    assert not importable("expunge.nothing")
