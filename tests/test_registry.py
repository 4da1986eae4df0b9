"""Methods and audits are found by being there."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from expunge.errors import BadInput
from expunge.registry import Registry, near_names


class Tool(ABC):
    id: str

    @abstractmethod
    def use(self) -> None: ...


HEAD = "from toolbase import Tool\n"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    package = tmp_path / "toolroom"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package / "saw.py").write_text(f"{HEAD}class Saw(Tool):\n    id = 'saw'\n    def use(self): pass\n")
    (package / "deep" / "axe.py").write_text(
        f"{HEAD}from toolroom.saw import Saw\n"  # an import is not a definition
        "class Half(Tool):\n    id = 'half'\n"  # still abstract
        "class Base(Tool):\n    def use(self): pass\n"  # no id of its own
        "class Axe(Base):\n    id = 'axe'\n"
        "class Alias(Axe):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "toolbase", ModuleType("toolbase"))
    sys.modules["toolbase"].Tool = Tool  # type: ignore[attr-defined]
    yield package
    for name in [n for n in sys.modules if n.split(".")[0] == "toolroom"]:
        del sys.modules[name]


def registry(package: str = "toolroom") -> Registry[Tool]:
    return Registry(package, Tool, "tool")  # type: ignore[type-abstract]


def test_concrete_classes_with_an_id_of_their_own_are_found(room: Path) -> None:
    tools = registry()
    assert tools.names() == ["axe", "saw"]
    assert [c.__name__ for c in tools.classes()] == ["Axe", "Saw"]
    assert tools.get("saw").__name__ == "Saw"


def test_unknown_names_are_met_with_near_ones(room: Path) -> None:
    with pytest.raises(BadInput, match="tool: there is no 'swa' -> did you mean saw"):
        registry().get("swa")
    with pytest.raises(BadInput, match=r"tool: there is no 'hammer' -> known: axe, saw"):
        registry().get("hammer")


def test_two_of_one_name_are_a_mistake_of_ours(room: Path) -> None:
    (room / "other.py").write_text(f"{HEAD}class Other(Tool):\n    id = 'saw'\n    def use(self): pass\n")
    with pytest.raises(RuntimeError, match="two tools are called 'saw'"):
        registry().names()


def test_near_names_or_all_of_them() -> None:
    assert near_names("learning_rat", ["learning_rate", "epochs"]) == "did you mean learning_rate?"
    assert near_names("zzz", ["b", "a"]) == "known: a, b"
    # Names much less like it are not named beside one that is nearly it, and case does not count.
    assert near_names("nopo", ["npo", "simnpo", "dpo"]) == "did you mean npo?"
    assert near_names("NPO", ["npo", "simnpo"]) == "did you mean npo?"
    assert near_names("dpp", ["npo", "dpo", "dpx"]) == "did you mean dpx or dpo?"
