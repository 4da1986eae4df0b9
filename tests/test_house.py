"""The rules of the house, read from the source itself: who may import whom, what is banned, what must be documented."""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "expunge"
TESTS = ROOT / "tests"

# From the ground up: a room imports only from lower levels. Rooms that do not exist yet already have their place.
LEVELS = (
    {"errors", "registry"},
    {"requests", "data"},
    {"tasks"},
    {"selections", "training", "forget_sets"},
    {"methods", "audits", "protect", "repair"},
    {"verdict", "reports", "runs", "benchmarks"},
    {"cli", "service", "reproductions"},
)
# The only imports between rooms of one level, each in one direction.
NEIGHBOURS = {
    ("registry", "errors"),
    ("data", "requests"),
    ("training", "selections"),
    ("reports", "verdict"),
    ("runs", "verdict"),
    ("runs", "reports"),
    ("benchmarks", "verdict"),
    ("benchmarks", "reports"),
    ("benchmarks", "runs"),
    ("cli", "reproductions"),
}
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
TOP = len(LEVELS)  # expunge/__init__.py and __main__.py, which nobody below may import

# A test file is named after its source file; these are about a whole room, or several.
ROOM_TESTS = {"contract", "integration", "parity", "calibration", "processes", "resume", "end_to_end"}


# ---- reading the source ----------------------------------------------------------------------------------------


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def place(path: Path) -> str:
    """Where a file is, for messages: 'tasks/tokens.py'."""
    return path.relative_to(SOURCE).as_posix()


def dotted(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def level_of(room: str) -> int:
    return LEVEL.get(room, TOP)


def room_of(path: Path) -> str:
    """The room of a file; top-level modules are rooms of their own, the package itself is ''."""
    parts = dotted(path)[1:]
    return "" if not parts or parts == ("__main__",) else parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every room that a file imports with its line: in functions, under TYPE_CHECKING and by import_module too."""
    package = dotted(path) if path.name == "__init__.py" else dotted(path)[:-1]
    for node in ast.walk(tree(path)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            # 'from expunge import tasks' names a room only in what it imports.
            names = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            value = node.args[0].value
            if called in {"import_module", "__import__", "Registry"} and isinstance(value, str):
                names = [value]
        for name in names:
            parts = name.split(".")
            if parts[0] == "expunge":
                inside = len(parts) > 1 and (parts[1] in LEVEL or (SOURCE / parts[1]).exists())
                yield node.lineno, parts[1] if inside else ""


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if imported == "cli":
        return importer == ""
    if importer in LEVELS[-1] and imported == "":
        return True  # the outermost rooms may use the public names
    return level_of(imported) < level_of(importer) or (importer, imported) in NEIGHBOURS


# ---- (a) rooms -------------------------------------------------------------------------------------------------


def test_every_room_has_a_level() -> None:
    homeless = {room_of(path) for path in modules()} - set(LEVEL) - {""}
    assert not homeless, f"give these a level in tests/test_house.py and docs/architecture.md: {sorted(homeless)}"


def test_imports_flow_one_way() -> None:
    wrong = [
        f"{place(path)}:{line}: {room_of(path) or 'expunge'} imports {room or 'the package itself'}"
        for path in modules()
        for line, room in imports(path)
        if not allowed(room_of(path), room)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_rule_itself_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "expunge"
    (package / "methods").mkdir(parents=True)
    bad = package / "methods" / "bad.py"
    bad.write_text(
        "from typing import TYPE_CHECKING\n"
        "from ..audits import base\n"
        "if TYPE_CHECKING:\n    from expunge.runs.job import Job\n"
        "def late():\n    from expunge import audit, cli\n    import expunge.verdict.decide\n"
        "from expunge.training import loop\nfrom . import sibling\nimport expunge.errors as e\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", package)
    seen = [(room, allowed(room_of(bad), room)) for _, room in imports(bad)]
    assert sorted(room for room, fine in seen if not fine) == ["", "audits", "cli", "runs", "verdict"]
    assert sorted(room for room, fine in seen if fine) == ["errors", "methods", "training"]
    assert not allowed("audits", "methods")
    assert not allowed("service", "cli")
    assert allowed("", "cli")


def test_neighbours_do_not_import_each_other_in_circles() -> None:
    for importer, imported in NEIGHBOURS:
        assert level_of(importer) == level_of(imported)
    waiting = set(NEIGHBOURS)
    while waiting:
        ready = {pair for pair in waiting if pair[1] not in {importer for importer, _ in waiting}}
        assert ready, f"a circle: {sorted(waiting)}"
        waiting -= ready


def test_every_folder_is_a_package() -> None:
    bare = {path.parent for path in modules() if not (path.parent / "__init__.py").exists()}
    assert not bare, f"no __init__.py, so nothing in it is found or shipped: {sorted(map(str, bare))}"


def test_rooms_on_disk_are_the_rooms_in_the_architecture_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = re.search(r"```\nsrc/expunge/\n(.*?)```", page, re.DOTALL)
    assert drawing, "docs/architecture.md has no drawing of src/expunge/"
    drawn = set(re.findall(r"^  (\w+)/", drawing[1], re.MULTILINE))
    there = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert drawn == there, f"only drawn: {sorted(drawn - there)}; only on disk: {sorted(there - drawn)}"


# ---- (b) what is banned ----------------------------------------------------------------------------------------

BANNED_MODULES = {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
BANNED_CALLS = {
    "torch.load": "runs code from the file; use safetensors",
    "joblib.load": "runs code from the file",
    "os.system": "goes through a shell",
    "os.popen": "goes through a shell",
    "eval": "runs text as code",
    "exec": "runs text as code",
}
BANNED_TRUE = {"trust_remote_code", "shell", "allow_pickle"}


def banned(path: Path) -> Iterator[str]:
    origin: dict[str, str] = {name: name for name in dir(builtins)}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:  # 'import a.b' binds a; 'import a.b as c' binds a.b to c
                first = alias.name.split(".")[0]
                origin[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            origin |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                if name.split(".")[0] in BANNED_MODULES:
                    yield f"{path.name}:{node.lineno}: import {name}: runs code from the file"
        if not isinstance(node, ast.Call):
            continue
        head, *rest = ast.unparse(node.func).split(".")
        called = ".".join([origin.get(head, head), *rest])
        if called in BANNED_CALLS:
            yield f"{path.name}:{node.lineno}: {called}: {BANNED_CALLS[called]}"
        for word in node.keywords:
            # Only a literal False passes: a variable would let a recipe switch it on.
            off = isinstance(word.value, ast.Constant) and word.value.value is False
            if word.arg in BANNED_TRUE and not off:
                yield f"{path.name}:{node.lineno}: {word.arg}={ast.unparse(word.value)}: must be False"


def test_nothing_in_the_source_runs_code_from_data() -> None:
    wrong = [problem for path in modules() for problem in banned(path)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch as t\nt.load('x')",
        "from torch import load as fetch\nfetch('x')",
        "eval('1')",
        "exec('1')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=option)",
    ],
)
def test_each_ban_is_seen(code: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(code)
    assert list(banned(tmp_path / "bad.py"))


def test_what_only_looks_banned_passes(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("model.eval()\nimport json\njson.load(f)\nload(trust_remote_code=False)\n")
    assert not list(banned(tmp_path / "good.py"))


# ---- (c) docstrings --------------------------------------------------------------------------------------------

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def undocumented(path: Path) -> Iterator[str]:
    """The module and public names without a docstring.

    A class that inherits may override what its base documents, so only methods of classes without a base of our own
    making are asked for one.
    """
    if not ast.get_docstring(tree(path)):
        yield f"{path.name}: the module"

    def visit(body: list[ast.stmt], prefix: str, inherits: bool) -> Iterator[str]:
        for node in body:
            if not isinstance(node, Definition) or node.name.startswith("_"):
                continue
            marks = {ast.unparse(mark).split(".")[-1] for mark in node.decorator_list}
            if not inherits and not marks & {"setter", "overload"} and not ast.get_docstring(node):
                yield f"{path.name}:{node.lineno}: {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
                inherited = bool(bases - {"ABC", "Protocol", "Generic", "Exception", "object"})
                yield from visit(node.body, f"{prefix}{node.name}.", inherited)

    yield from visit(tree(path).body, "", False)


def test_everything_public_has_a_docstring() -> None:
    missing = [
        f"{place(path.parent)}/{problem}" if path.parent != SOURCE else problem
        for path in modules()
        for problem in undocumented(path)
    ]
    assert not missing, "\n".join(missing)


def test_a_missing_docstring_is_seen(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "class A:\n    def f(self): ...\n    def _g(self): ...\n"
        "class B(A):\n    '''B.'''\n    def f(self): ...\n"
        "def h(): ...\ndef _i(): ...\n"
    )
    assert [line.split(": ")[1] for line in undocumented(bad)] == ["the module", "A", "A.f", "h"]


# ---- (d) tests mirror the source -------------------------------------------------------------------------------


def test_tests_mirror_the_source() -> None:
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = SOURCE / path.parent.relative_to(TESTS)
        name = path.stem.removeprefix("test_")
        if path == Path(__file__).resolve():
            continue
        if not folder.is_dir():
            strays.append(f"{path.relative_to(ROOT)}: there is no {folder.relative_to(ROOT)}/")
            continue
        # test_loop_resume.py may be a second file about loop.py
        about = {name} | {name[:cut] for cut in range(len(name)) if name[cut] == "_"}
        known = {p.stem for p in folder.glob("*.py")} | {p.name for p in folder.iterdir() if p.is_dir()} | ROOM_TESTS
        if not about & known:
            strays.append(f"{path.relative_to(ROOT)}: there is no {(folder / name).relative_to(ROOT)}.py")
    assert not strays, "\n".join(strays)


def test_test_folders_are_not_packages() -> None:
    # Files of one name in two folders are told apart by importlib mode, which packages would defeat.
    assert not list(TESTS.rglob("__init__.py"))


# ---- (e) no machine paths --------------------------------------------------------------------------------------

MACHINE = re.compile(
    r"(?<![\w.])/(?:ro[o]t|hom[e]/\w+|User[s]/\w+|wor[k]/\w+|op[t]/\w+|var/folder[s])\b|[A-Z]:\\User[s]"
)


@pytest.mark.parametrize("path", [("home", "ann"), ("opt", "wheels"), ("work", "main"), ("root",), ("Users", "ann")])
def test_machine_paths_are_recognised(path: tuple[str, ...]) -> None:
    # Put together here, so that this file does not hold what it looks for.
    absolute = "/" + "/".join(path)
    assert MACHINE.search(f"see '{absolute}/x'")
    assert MACHINE.search(f"PATH={absolute}")
    assert not MACHINE.search(f"..{absolute}")
    assert not MACHINE.search(f"https://host{absolute}")
    assert not MACHINE.search(f"docs{absolute}")


def test_no_machine_paths_in_tracked_files() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so nothing is tracked")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a binary file, or one deleted but not yet committed
        found += [
            f"{name}:{n}: {line.strip()[:100]}" for n, line in enumerate(text.splitlines(), 1) if MACHINE.search(line)
        ]
    assert not found, "\n".join(found)


# ---- (f) importing costs little and asks nobody ----------------------------------------------------------------

# Refuses every connection, below whatever library makes it.
NO_NETWORK = """
import sys
def refuse(event, args):
    if event == "socket.getaddrinfo" or (event == "socket.connect" and isinstance(args[1], tuple)):
        raise RuntimeError(f"network: {event} {args}")
sys.addaudithook(refuse)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_NETWORK + code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_the_network_trap_works() -> None:
    assert "network: socket" in python("import socket; socket.create_connection(('192.0.2.1', 80), 1)").stderr


def test_importing_the_package_does_not_import_torch() -> None:
    done = python("import expunge; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_are_there() -> None:
    core = {"unlearn", "audit", "read_request", "DeletionRequest", "CausalLM"}
    done = python(
        f"import expunge; print(sorted({core} - set(expunge.__all__)),"
        " [n for n in expunge.__all__ if not callable(getattr(expunge, n))])"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[] []"


@pytest.mark.parametrize("what", ["methods", "audits"])
def test_listing_asks_nobody(what: str) -> None:
    done = python(f"sys.argv = ['expunge', '{what}', '--json']; from expunge.cli.app import main; main()")
    assert done.returncode == 0, done.stderr
    assert '"name"' in done.stdout
