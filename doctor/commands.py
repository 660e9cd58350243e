"""`diptych doctor`: what stands in the way here, and what to do about it."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doctor.findings import Finding

app = typer.Typer()
STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


@app.command(epilog="Example:\n  diptych doctor --store store")
def doctor(
    store: Annotated[str | None, typer.Option(help="Folder or URL of a store to check too. [DIPTYCH_STORE]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Python, processor, memory, packages and a store, and say what to do.

    A note costs speed or leaves a command out; a problem stops work, and the exit code is then 1.
    """
    import os

    from doctor.machine import machine
    from doctor.packages import packages
    from doctor.store import store as look_at

    place = store or os.environ.get("DIPTYCH_STORE")
    found = [*machine(), *packages(), *(look_at(place) if place else ())]
    problems = sum(one.state == "problem" for one in found)
    if as_json:
        from retrieval.system.terminal import print_json

        print_json({"ok": not problems, "findings": [one._asdict() for one in found]})
    else:
        _show(found, problems)
    if problems:
        raise typer.Exit(1)


def _show(found: "Sequence[Finding]", problems: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from retrieval.system.console import Console

    table = Table(box=None, show_header=False)
    for column in ("topic", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("value", overflow="fold")
    for one in found:
        value = f"{one.value}\n→ {one.advice}" if one.advice else one.value
        table.add_row(Text(one.topic), Text(one.state, style=STYLES[one.state]), Text(value))
    Console().print(table)
    notes = sum(one.state == "note" for one in found)
    typer.echo(f"\n{_count(problems, 'problem')}, {_count(notes, 'note')}.")


def _count(many: int, what: str) -> str:
    return f"{many} {what}{'s' * (many != 1)}"
