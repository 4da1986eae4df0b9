"""The ``expunge`` command: its sub-commands, and how errors leave the process."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from expunge.cli import benches, compare, demo, doctor, forget_sets, imports, jobs, listing, reproduce, sweep
from expunge.cli.terminal import paragraphs, problems_of, quiet_libraries, say, show_json
from expunge.errors import ExpungeError

# Usage errors of the parser; typer exports the subclass only.
UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class Commands(TyperGroup):
    """The top-level group. Errors leave as one message per line and an exit code, never as a traceback.

    Exit codes: 0 done; 2 input that the user can correct; 3 a verdict other than the one required; 1 anything else.
    """

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command and leave with its exit code. ``--debug`` may stand anywhere."""
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        given = [arg for arg in given if arg != "--debug"]
        try:
            with contextlib.nullcontext() if debug else quiet_libraries():
                done = super().main(
                    args=given,
                    prog_name=prog_name or "expunge",
                    complete_var=complete_var,
                    standalone_mode=False,
                    windows_expand_args=windows_expand_args,
                    **extra,
                )
        except UsageError as error:
            _usage(error, "--json" in given)
        except BrokenPipeError:
            # Whoever read the output has seen enough; the interpreter would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            _fail(error, debug, "--json" in given)
        if done == 130:
            say("interrupted")
        sys.exit(1 if done == 130 else done if isinstance(done, int) else 0)


def _usage(error: Any, as_json: bool) -> NoReturn:
    message = error.format_message().replace("Value error, ", "") or "the command is incomplete"
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "expunge"
    if as_json:
        problem = {"where": path, "what": message, "fix": f"see {path} --help", "severity": "error"}
        show_json({"error": message, "exit_code": 2, "problems": [problem]})
    say(f"{message}\nTry `{path} --help`.")
    sys.exit(2)


def _fail(error: Exception, debug: bool, as_json: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    message, code = describe(error)
    if as_json:
        show_json({"error": message, "exit_code": code, "problems": problems_of(error)})
    say(message)
    sys.exit(code)


def describe(error: Exception) -> tuple[str, int]:
    """Return what to tell the user of an error, and the exit code."""
    if isinstance(error, ExpungeError):
        return str(error), error.exit_code
    name = type(error).__name__
    if name == "OutOfMemoryError" or isinstance(error, MemoryError):
        fix = "lower micro_batch_size, use --dtype bfloat16, or train adapters: --set lora.rank=8"
        return f"memory: not enough of it -> {fix}", 1
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{name}: {first} -> this is a bug, please report it with the output of the same command and --debug", 1


app = typer.Typer(
    name="expunge",
    cls=Commands,
    help="Remove data from trained models and prove that it is gone.\n\n"
    "Exit codes: 0 done, 2 input to correct, 3 verdict other than required, 1 anything else.",
    add_completion=False,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)


@app.callback()
def start(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks and library warnings; may stand anywhere."),
) -> None:
    """Remove data from trained models and prove that it is gone."""
    del debug  # taken out of the arguments by Commands.main
    if version:
        from expunge import __version__

        print(__version__)
        raise typer.Exit()
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit()


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo.demo,
    "unlearn": jobs.unlearn,
    "audit": jobs.audit,
    "sweep": sweep.sweep,
    "compare": compare.compare,
    "methods": listing.methods,
    "audits": listing.audits,
    "selections": listing.selections,
    "forget-sets": forget_sets.forget_sets,
    "reproduce": reproduce.reproduce,
    "doctor": doctor.doctor,
}
for _name, _command in COMMANDS.items():
    app.command(_name, help=paragraphs(_command))(_command)
app.add_typer(benches.bench, name="bench")
app.add_typer(imports.imports, name="import")


def main() -> None:
    """Run the command line; what the ``expunge`` script calls."""
    app()
