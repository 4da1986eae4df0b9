from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from expunge.audits.suite import AUDITS
from expunge.cli.app import app
from expunge.methods.run import METHODS
from expunge.selections.base import SELECTIONS


def listed(*args: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, [*args, "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def test_every_method_is_listed_with_what_is_promised() -> None:
    found = listed("methods")
    assert [m["name"] for m in found] == METHODS.names()
    for method in found:
        assert {"name", "title", "tasks", "needs", "scenarios", "removal_level", "paper", "module", "settings"} <= set(
            method
        )
        assert method["removal_level"] in ("guard", "adapter", "approximate", "exact")
        assert method["tasks"]
        assert all(
            {"name", "default", "description", "type"} <= set(f) for f in method["settings"] + method["training"]
        )
        assert all(f["description"] for f in method["settings"] + method["training"]), method["name"]
        __import__(method["module"])


def test_needs_are_those_of_the_default_settings() -> None:
    needs = {m["name"]: m["needs"] for m in listed("methods")}
    assert needs["npo"] == ["retain"]
    assert needs["gradient_ascent"] == []


def test_nested_settings_have_the_names_that_set_takes() -> None:
    (npo,) = listed("methods", "npo")
    by_name = {f["name"]: f for f in npo["training"]}
    assert by_name["stop.every"]["default"] == 0
    assert by_name["lora.rank"] == {
        "name": "lora.rank", "type": "int", "default": None, "when_on": 8, "description": "rank of the adapters"
    }  # fmt: skip
    assert {f["name"]: f["default"] for f in npo["settings"]}["beta"] == 0.1


def test_every_audit_is_listed_with_what_is_promised() -> None:
    found = listed("audits")
    assert [a["name"] for a in found] == AUDITS.names()
    for audit in found:
        assert {"name", "title", "tasks", "needs", "paper", "module", "settings", "default"} <= set(audit)
        assert audit["tasks"]
        assert all(f["description"] for f in audit["settings"]), audit["name"]


def test_every_selection_is_listed_with_what_is_promised() -> None:
    found = listed("selections")
    assert [s["name"] for s in found] == SELECTIONS.names()
    for selection in found:
        assert {"name", "title", "tasks", "needs", "paper", "module", "settings"} <= set(selection)
        assert all(f["description"] for f in selection["settings"]), selection["name"]
    (saliency,) = listed("selections", "saliency")
    assert {f["name"]: f["default"] for f in saliency["settings"]}["share"] == 0.5


@pytest.mark.parametrize(
    "args", [("methods",), ("audits",), ("selections",), ("methods", "npo"), ("audits", "relearning")]
)
def test_tables_fit_80_columns(args: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
