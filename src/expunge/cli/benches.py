"""``expunge bench``: published protocols. Each is a command because its file is there; its options are its fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer
from typer.core import TyperGroup
from typer.main import get_command

from expunge.cli.terminal import Shown, show, show_json, show_markdown, show_table

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from expunge.benchmarks.base import Benchmark

HELP = "Run a published protocol and compare methods; without a name, list them."


class Benches(TyperGroup):
    """The benchmarks as commands, read from their room when one is asked for, so that other commands start quickly."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the name of every benchmark."""
        del ctx
        from expunge.benchmarks.base import BENCHMARKS

        return BENCHMARKS.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Build the command of one benchmark.

        Raises:
            BadInput: no such benchmark; the message suggests near names.
        """
        if cmd_name.startswith("-"):
            return super().get_command(ctx, cmd_name)
        from expunge.benchmarks.base import BENCHMARKS

        return command_of(BENCHMARKS.get(cmd_name))


bench = typer.Typer(cls=Benches, help=HELP, invoke_without_command=True)


@bench.callback()
def start(
    context: typer.Context, as_json: bool = typer.Option(False, "--json", help="Print the list as JSON.")
) -> None:
    """Run a published protocol and compare methods; without a name, list them."""
    if context.invoked_subcommand is not None:
        return
    from expunge.benchmarks.base import BENCHMARKS

    found = [{"name": b.id, "title": b.title, "paper": b.paper, "module": b.__module__} for b in BENCHMARKS.classes()]
    if as_json:
        show_json(found)
    else:
        rows = [(b["name"], b["title"], b["paper"]) for b in found]
        show_table("", ("name", "what it measures", "paper"), rows, whole=True)
        show("`expunge bench NAME --help` lists the options.")


def command_of(benchmark: type[Benchmark[Any]]) -> Any:
    """Return the command that runs a benchmark: an option per field of its options, and ``--json``."""
    from expunge.benchmarks.base import read_options

    fields = benchmark.Options.model_fields

    def run(as_json: bool, **given: Any) -> None:
        options = read_options(benchmark.Options, given)
        with Shown() as progress:
            progress.stage("starting")
            result = benchmark().run(options, progress)
        if as_json:
            show_json(result.to_dict())
            return
        show_markdown(result.to_markdown())
        if (page := options.out / "table.md").is_file():
            show(f"\nTables: {page}")

    parameters = [_parameter(name, field) for name, field in fields.items()]
    as_json = typer.Option(False, "--json", help="Print the result as JSON.")
    parameters.append(inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=as_json, annotation=bool))
    call: Callable[..., None] = run
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    one = typer.Typer(add_completion=False)
    one.command(benchmark.id, help=f"{benchmark.title}.\n\nPaper: {benchmark.paper}")(call)
    return get_command(one)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """Turn a field into an option. Values are checked by the options themselves, so that all that is wrong is said."""
    from expunge.benchmarks.base import flag_of

    flag = flag_of(name, field)
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind not in (type(None), Ellipsis)]
    many = isinstance(field.default, tuple)
    on_off = not many and kinds == [bool]
    annotation: Any = list[str] if many else bool if on_off else str | None
    shown = ", ".join(map(str, field.default)) if many else str(field.default)
    default = "" if on_off or field.default in (None, ()) else f" Default: {shown}."
    option = typer.Option(
        [] if many else field.default if on_off else None,
        flag.name if not on_off else f"{flag.name}/--no-{flag.name.removeprefix('--')}",
        help=f"{field.description}{default}",
        metavar=None if on_off else flag.metavar or _metavar(kinds[0]),
        show_default=False,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=annotation)


def _metavar(kind: Any) -> str:
    bare = getattr(kind, "__origin__", kind)  # a number with bounds is written as Annotated
    return {int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(bare, "TEXT")
