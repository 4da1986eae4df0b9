"""``expunge methods``, ``audits`` and ``selections``: what is in the house, with every setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import typer

from expunge.cli.terminal import show, show_json, show_table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from expunge.audits.base import Audit
    from expunge.methods.base import Method
    from expunge.selections.base import Selection

Named = typer.Argument(None, help="Show this one only, with its settings.", metavar="[NAME]")
Json = typer.Option(False, "--json", help="Print as JSON.")


def methods(name: str | None = Named, as_json: bool = Json) -> None:
    """List the methods, or one with its settings."""
    from expunge.methods.run import METHODS

    chosen = METHODS.classes() if name is None else [METHODS.get(name)]
    found = [describe_method(method) for method in chosen]
    show_found(
        found,
        name is not None,
        as_json,
        {"what it does": "title", "needs": "needs", "level": "removal_level"},
        ["Every one needs a forget set. `expunge methods NAME` lists settings, `--json` everything."],
        {"Settings of the method": "settings", "Settings of training": "training"},
    )
    if name is not None and not as_json:
        show(
            "Where nothing is said about stop and checkpoint_every, `expunge unlearn` looks at 32 examples of each set "
            "5 times and saves its state 10 times per run."
        )


def audits(name: str | None = Named, as_json: bool = Json) -> None:
    """List the audits, or one with its settings."""
    from expunge.audits.suite import AUDITS

    chosen = AUDITS.classes() if name is None else [AUDITS.get(name)]
    found = [describe_audit(audit) for audit in chosen]
    show_found(
        found,
        name is not None,
        as_json,
        {"question": "title", "needs": "needs"},
        [
            "* only where --audit or --set audits.NAME.KEY=VALUE names it.",
            "`expunge audits NAME` lists settings, `--json` everything.",
        ],
        {f"Settings, given as --set audits.{name}.KEY=VALUE": "settings"},
    )


def selections(name: str | None = Named, as_json: bool = Json) -> None:
    """List the ways to choose which weights may move, or one with its settings."""
    from expunge.selections.base import SELECTIONS

    chosen = SELECTIONS.classes() if name is None else [SELECTIONS.get(name)]
    found = [describe_selection(selection) for selection in chosen]
    show_found(
        found,
        name is not None,
        as_json,
        {"what it chooses": "title", "needs": "needs"},
        [
            "Any method that trains takes one: --set select.by=NAME --set select.KEY=VALUE.",
            "`expunge selections NAME` lists settings, `--json` everything.",
        ],
        {"Settings, given as --set select.KEY=VALUE": "settings"},
    )


def describe_method(method: type[Method]) -> dict[str, Any]:
    """Return what can be known of a method without running it."""
    from expunge.methods.base import settle

    configured, train = settle(method, {})
    return {
        "name": method.id,
        "title": method.title,
        "tasks": list(method.tasks),
        "needs": list(configured.required()),
        "scenarios": list(method.scenarios),
        "removal_level": method.removal_level,
        "paper": method.paper,
        "module": method.__module__,
        "settings": fields(configured.config),
        "training": fields(train),
    }


def describe_audit(audit: type[Audit]) -> dict[str, Any]:
    """Return what can be known of an audit without running it."""
    return {
        "name": audit.id,
        "title": audit.title,
        "tasks": list(audit.tasks),
        "needs": list(audit.needs),
        "reads": [list(read) for read in audit.reads],
        "generates": list(audit.generates),
        "default": audit.default,
        "paper": audit.paper,
        "module": audit.__module__,
        "settings": fields(audit.Config()),
    }


def describe_selection(selection: type[Selection]) -> dict[str, Any]:
    """Return what can be known of a selection without running it."""
    return {
        "name": selection.id,
        "title": selection.title,
        "tasks": list(selection.tasks),
        "needs": list(selection.needs),
        "paper": selection.paper,
        "module": selection.__module__,
        "settings": fields(selection.Config()),
    }


def fields(settings: BaseModel, prefix: str = "") -> list[dict[str, Any]]:
    """List the fields of a settings object with the value that they have, nested ones by dotted name."""
    from pydantic import BaseModel

    found: list[dict[str, Any]] = []
    values = settings.model_dump(mode="json")
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            found += fields(value, f"{prefix}{name}.")
            continue
        nested = [t for t in get_args(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        if value is None and nested:
            # Off until one of its settings is given.
            inner = fields(nested[0](), f"{prefix}{name}.")
            found += [item | {"default": None, "when_on": item["default"]} for item in inner]
            continue
        kind = field.annotation
        found.append(
            {
                "name": f"{prefix}{name}",
                "type": kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""),
                "default": values[name],
                "description": field.description or "",
            }
        )
    return found


def show_found(
    found: Sequence[dict[str, Any]],
    one: bool,
    as_json: bool,
    columns: Mapping[str, str],
    notes: Sequence[str],
    sections: Mapping[str, str],
    least: str = "the forget set only",
) -> None:
    """Print a list of what there is, or one entry of it with its settings.

    Args:
        found: entries as they are printed as JSON.
        one: whether it is a single one that was asked for.
        as_json: print JSON.
        columns: title of a column behind the name -> key of an entry.
        notes: lines below the list.
        sections: title of a table of settings -> key of an entry.
        least: what is needed where nothing else is.
    """
    if as_json:
        show_json(found)
    elif one:
        _show_one(found[0], sections, least)
    else:
        rows = [(entry["name"] + " *" * (not entry.get("default", True)), *_cells(entry, columns)) for entry in found]
        show_table("", ("name", *columns), rows, whole=True)
        for note in notes:
            show(note)


def _cells(entry: Mapping[str, Any], columns: Mapping[str, str]) -> list[str]:
    values = (entry[key] for key in columns.values())
    return [value if isinstance(value, str) else ", ".join(value) or "-" for value in values]


def _show_one(found: Mapping[str, Any], sections: Mapping[str, str], least: str) -> None:
    show(f"{found['name']}: {found['title']}")
    show(f"Paper: {found['paper']}")
    serves = ", ".join(found["tasks"]) or "every kind of model"
    show(f"Serves: {serves}. Needs: {', '.join(found['needs']) or least}.")
    if "removal_level" in found:
        show(f"Removal level: {found['removal_level']}")
    for title, key in sections.items():
        if found[key]:
            rows = [(f["name"], _value(f), f["description"]) for f in found[key]]
            show_table(title, ("name", "default", "what it is"), rows)


def _value(field: dict[str, Any]) -> str:
    if "when_on" in field:
        return f"off ({field['when_on']})"
    return "none" if field["default"] is None else str(field["default"])
