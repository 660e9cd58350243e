"""The command `diptych doctor`."""

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
    """Check this machine for problems: Python, processor, memory, packages and a store.

    A note costs speed or makes a command unavailable. A problem stops work, and the exit code is then 1.
    """
    import os

    from doctor.machine import check_machine
    from doctor.packages import check_packages
    from doctor.store import check_store

    place = store or os.environ.get("DIPTYCH_STORE")
    findings = [*check_machine(), *check_packages(), *(check_store(place) if place else ())]
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        from retrieval.system.terminal import print_json

        print_json({"ok": not problems, "findings": [finding._asdict() for finding in findings]})
    else:
        _print_table(findings, problems)
    if problems:
        raise typer.Exit(1)


def _print_table(findings: "Sequence[Finding]", problems: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from retrieval.system.console import Console

    table = Table(box=None, show_header=False)
    for column in ("topic", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("value", overflow="fold")
    for finding in findings:
        value = f"{finding.value}\n→ {finding.advice}" if finding.advice else finding.value
        table.add_row(Text(finding.topic), Text(finding.state, style=STYLES[finding.state]), Text(value))
    Console().print(table)
    notes = sum(finding.state == "note" for finding in findings)
    typer.echo(f"\n{_count(problems, 'problem')}, {_count(notes, 'note')}.")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
