"""The command line's page: every command's own help, as a terminal shows it."""

import re

from typer.testing import CliRunner

import diptych

WIDTH = {"COLUMNS": "88", "TERM": "dumb", "NO_COLOR": "1"}


def page() -> str:
    """The Markdown of the page."""
    parts = ["# Command line", "Every command's help, as `diptych COMMAND --help` shows it.", _block(help_of())]
    for command, entry in diptych.COMMANDS.items():
        parts += [f"## diptych {command}", f"Needs `pip install 'diptych[{entry.extras}]'`.", _block(help_of(command))]
        for inner in inner_commands(command):
            parts += [f"### diptych {command} {inner}", _block(help_of(command, inner))]
    return "\n\n".join(parts) + "\n"


def help_of(*words: str) -> str:
    """What `diptych WORDS --help` prints."""
    outcome = CliRunner().invoke(diptych.build_app(words[0] if words else None), [*words, "--help"], env=WIDTH)
    if outcome.exit_code:
        raise RuntimeError(f"`diptych {' '.join(words)} --help` ended with {outcome.exit_code}: {outcome.output}")
    return re.sub(r"Usage: root", "Usage: diptych", outcome.output)


def inner_commands(command: str) -> list[str]:
    """The names of the commands that a command holds; none for most."""
    from typer.main import get_command

    group = get_command(diptych.build_app(command))
    return sorted(getattr(group.commands[command], "commands", {}))  # type: ignore[attr-defined]


def _block(text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    return "\n".join(["```text", *lines, "```"])
