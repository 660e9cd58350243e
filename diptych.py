"""The front door: one line a command, each room opened only when somebody walks in.

    prepare → train → evaluate → export → search → serve

A command's module is imported when the command is called, so `diptych serve` starts where torch is not installed.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import typer

from retrieval.errors import DiptychError
from retrieval.system import stopping
from retrieval.system.terminal import echo, replace_unprintable


class Room(NamedTuple):
    """Where a command lives, what it is for, the extras that bring its packages, and its panel in the help."""

    module: str
    help: str
    extras: str
    panel: str


LEARN, PUBLISH, ANSWER, LOOK = "1. Learn", "2. Publish", "3. Answer", "When something is wrong"
COMMANDS = {
    "prepare": Room("training.commands", "Turn queries, labels and clicks into a dataset.", "train", LEARN),
    "train": Room("training.commands", "Train the unified model on a dataset.", "train", LEARN),
    "evaluate": Room("training.commands", "Measure a checkpoint on one split of a dataset.", "train", LEARN),
    "export": Room("export.commands", "Build a verified bundle from a checkpoint.", "export,cpu", PUBLISH),
    "bundles": Room("retrieval.commands", "List, show, verify and activate a store's bundles.", "cpu", PUBLISH),
    "search": Room("retrieval.commands", "Ask a bundle from the command line.", "cpu", ANSWER),
    "predict": Room("retrieval.commands", "Match a whole file of queries offline.", "cpu", ANSWER),
    "serve": Room("service.commands", "Answer POST /predict from a store's active bundle.", "serve,cpu", ANSWER),
    "loadtest": Room("loadtest.commands", "Measure a running service under load.", "loadtest", ANSWER),
    "doctor": Room("doctor.commands", "Check this machine, its packages and a store.", "cpu", LOOK),
}

THE_WAY = """From clicks to answers:
  diptych prepare clicks.csv --out dataset
  diptych train --dataset dataset --out checkpoint
  diptych evaluate checkpoint --dataset dataset
  diptych export checkpoint --store store --activate
  diptych search store "cheap flights"
  diptych serve --store store

`diptych COMMAND --help` shows every option, and an example.
"""


def front_door(called: str | None) -> typer.Typer:
    """The whole command line, with only the called command's module imported; the others show their help line."""
    app = typer.Typer(
        name="diptych",
        help="Answer short queries with the few best of millions of short texts.",
        epilog=THE_WAY,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_before_any_command)
    opened = COMMANDS[called].module if called in COMMANDS else None
    for name, room in COMMANDS.items():
        if room.module != opened:
            app.command(name, help=room.help, rich_help_panel=room.panel)(lambda: None)
    if called in COMMANDS:
        app.add_typer(import_room(called).app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"diptych {version('diptych')}")
        raise typer.Exit


def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What may stand before a command's name."""


def called_command(args: Sequence[str]) -> str | None:
    """The first word after `diptych`: of the arguments, or of the line in which a shell asks to complete a word."""
    if "_DIPTYCH_COMPLETE" in os.environ:
        line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
        args = line.split()[1:]
    return args[0] if args else None


def import_room(command: str):  # type: ignore[no-untyped-def]  # a module, whose `app` mypy checks where it is written
    """Import the module of `command`; DiptychError with the extra to install when a package is missing."""
    try:
        return import_module(COMMANDS[command].module)
    except ModuleNotFoundError as missing:
        raise missing_package(command, missing) from missing


def missing_package(command: str, missing: ModuleNotFoundError) -> DiptychError:
    return DiptychError(
        f"`diptych {command}` needs the package '{missing.name}', which is not installed here. "
        f"Install it with: pip install 'diptych[{COMMANDS[command].extras}]'"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 1 after an error, which is one sentence on stderr.

    After SIGTERM or Ctrl-C it is 128 plus the signal's number; see retrieval/system/stopping.py.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    called = called_command(args)
    if argv is None and called != "serve":  # serve handles signals itself; a Python caller keeps its handlers
        stopping.install()
    replace_unprintable()
    try:
        front_door(called)(args, prog_name="diptych")
    except OSError as error:  # a path or a disk that cannot be used, wherever it was met
        echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        return 1
    except SystemExit as ended:  # how Typer reports every outcome, success included
        return int(ended.code or 0)
    except DiptychError as error:
        echo(f"error: {error}", err=True)
        return 1
    except ModuleNotFoundError as missing:
        if called not in COMMANDS or missing.name is None:
            raise
        echo(f"error: {missing_package(called, missing)}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
