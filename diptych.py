"""The command line `diptych`: prepare → train → evaluate → export → search → serve.

Only the module of the called command is imported, so `diptych serve` works where torch is not installed.
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


class Command(NamedTuple):
    """The module of a command, its line in the help, the extras that it needs, and its panel in the help."""

    module: str
    help: str
    extras: str
    panel: str


TRAIN, PUBLISH, SERVE, TROUBLESHOOTING = "1. Train", "2. Publish", "3. Serve", "Troubleshooting"
COMMANDS = {
    "prepare": Command("training.commands", "Turn queries, labels and clicks into a dataset.", "train", TRAIN),
    "train": Command("training.commands", "Train a model on a dataset.", "train", TRAIN),
    "evaluate": Command("training.commands", "Measure a checkpoint on a split of a dataset.", "train", TRAIN),
    "export": Command("export.commands", "Build a verified bundle from a checkpoint.", "export,cpu", PUBLISH),
    "bundles": Command("retrieval.commands", "List, show, verify and activate the bundles of a store.", "cpu", PUBLISH),
    "search": Command("retrieval.commands", "Search a bundle from the command line.", "cpu", SERVE),
    "predict": Command("retrieval.commands", "Match a file of queries offline.", "cpu", SERVE),
    "serve": Command("service.commands", "Serve POST /predict from a store's active bundle.", "serve,cpu", SERVE),
    "loadtest": Command("service.commands", "Measure a running service under load.", "serve,cpu", SERVE),
    "doctor": Command("doctor.commands", "Check this machine, its packages and a store.", "cpu", TROUBLESHOOTING),
}

QUICKSTART = """Quick start:
  diptych prepare clicks.csv --out dataset
  diptych train --dataset dataset --out checkpoint
  diptych evaluate checkpoint --dataset dataset
  diptych export checkpoint --store store --activate
  diptych search store "cheap flights"
  diptych serve --store store

`diptych COMMAND --help` shows all options and an example.
"""


def build_app(called: str | None) -> typer.Typer:
    """Build the command line. Only the called command's module is imported; the others have only a line of help."""
    app = typer.Typer(
        name="diptych",
        help="Match short queries to the best of millions of labels: train, export and serve a model.",
        epilog=QUICKSTART,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    called_module = COMMANDS[called].module if called in COMMANDS else None
    for name, command in COMMANDS.items():
        if command.module != called_module:
            app.command(name, help=command.help, rich_help_panel=command.panel)(lambda: None)
    if called in COMMANDS:
        app.add_typer(import_command(called).app)
    return app


def _show_version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        print(f"diptych {version('diptych')}")
        raise typer.Exit


def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the name of a command."""


def called_command(args: Sequence[str]) -> str | None:
    """Return the first word after `diptych`, of the arguments or of the line that a shell wants to complete."""
    if "_DIPTYCH_COMPLETE" in os.environ:
        line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""
        args = line.split()[1:]
    return args[0] if args else None


def import_command(name: str):  # type: ignore[no-untyped-def]  # a module; mypy checks its `app` where it is defined
    """Import the module of a command. Raises DiptychError that names the extra to install if a package is missing."""
    try:
        return import_module(COMMANDS[name].module)
    except ModuleNotFoundError as missing:
        raise missing_package(name, missing) from missing


def missing_package(command: str, missing: ModuleNotFoundError) -> DiptychError:
    """Return the error for a command whose package is not installed."""
    return DiptychError(
        f"`diptych {command}` needs the package '{missing.name}', which is not installed. "
        f"Install it with: pip install 'diptych[{COMMANDS[command].extras}]'"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 1 after an error, which is printed on stderr in one sentence.

    After SIGTERM or Ctrl-C it is 128 plus the signal's number; see retrieval/system/stopping.py.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    called = called_command(args)
    if argv is None and called != "serve":  # serve handles signals itself; a Python caller keeps its handlers
        stopping.install()
    replace_unprintable()
    try:
        build_app(called)(args, prog_name="diptych")
    except OSError as error:  # an unusable path or a full disk, anywhere in a command
        echo(f"error: {error.filename or 'the system'}: {error.strerror or error}", err=True)
        return 1
    except SystemExit as ended:  # Typer raises it for every outcome, also for success
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
