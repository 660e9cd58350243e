"""The command line in this process, as a user calls it."""

from pathlib import Path

import diptych


def run(*arguments: str | Path) -> int:
    """Run `diptych ARGUMENTS...`; returns the exit code."""
    try:
        return diptych.main([str(argument) for argument in arguments])
    except SystemExit as ended:  # Typer ends a command this way, also when it went well
        return int(ended.code or 0)
