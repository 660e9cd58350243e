"""The output of commands: no control characters from texts, no encoding errors, valid JSON."""

import io
import json
import os
import subprocess
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from retrieval.system.console import Console
from retrieval.system.terminal import echo, json_value, print_json, strip_controls
from tests.support.bundles import make_bundle

EVIL = "red\x1b[31m\x1b]0;title\x07\x9b2J\u202e\u2066\r\x08shoes"
UNSAFE = set(EVIL) - set("red[31m]0;title2Jshoes")


def test_control_characters_are_removed_and_lines_stay() -> None:
    """If this failed, a label could repaint a screen, or errors of several lines would become one."""
    assert strip_controls(EVIL) == "red[31m]0;title2Jshoes"
    assert strip_controls("a\n\tb é 鞋 👟") == "a\n\tb é 鞋 👟"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_prints_no_control_of_a_text(terminal: bool) -> None:
    """If this failed, a query or label in a table, a title or a line could send escape sequences."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, color_system="truecolor" if terminal else None, width=60)
    table = Table("query", title=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL, style="bold"))
    console.print(table)
    console.print(EVIL, markup=False)
    printed = file.getvalue()
    if terminal:
        assert "\x1b[1m" in printed  # the console's own styles stay
        printed = printed.replace("\x1b[", "")
    assert not set(printed) & UNSAFE
    borders = [line for line in file.getvalue().splitlines() if "┃" in line or "│" in line]
    assert len({len(line) for line in borders}) <= (3 if terminal else 1)


def test_lines_are_printed_without_controls(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, messages that name a text could send escape sequences."""
    echo(EVIL)
    echo(EVIL, err=True)
    captured = capsys.readouterr()
    assert captured.out == captured.err == "red[31m]0;title2Jshoes\n"


def test_printed_json_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a script could not parse NaN in --json, or a label in it could send escape sequences."""
    content = {
        "nan": float("nan"), "inf": [float("-inf")], "day": date(2020, 1, 2), "exact": Decimal("1.5"), "raw": b"a\xff",
        1: True, "text": EVIL, "half": "\ud800", "letters": "é鞋👟", "pair": (1, 2),
    }  # fmt: skip
    print_json(content)
    printed = capsys.readouterr().out
    assert not set(printed) & UNSAFE
    read = json.loads(printed, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == {
        "nan": None, "inf": [None], "day": "2020-01-02", "exact": "1.5", "raw": "a\\xff", "1": True, "text": EVIL,
        "half": "\ud800", "letters": "é鞋👟", "pair": [1, 2],
    }  # fmt: skip
    assert json_value({"a": {1.5}}) == {"a": [1.5]}


COMMANDS = """
import json, sys
import diptych
for number, (arguments, expected) in enumerate(json.load(open(sys.argv[1]))):
    print(f"--- {number}", flush=True)
    assert diptych.main(arguments) == expected, arguments
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_encoding_of_the_terminal_stops_a_command(tmp_path: Path, encoding: str) -> None:
    """If this failed, `search` and `prepare` would end in a UnicodeEncodeError under an old locale."""
    bundle, source = str(make_bundle(tmp_path / "wörter")), tmp_path / "é鞋.csv"
    evil = EVIL.replace("\r", "")
    source.write_text(f"query,label,ß鞋\n鞋 é,x,1\n{evil},y,2\n,z,3\n", encoding="utf-8")
    made = str(tmp_path / "out")
    commands = [
        (["search", bundle, "鞋 é 👟", "-k", "2", "--json"], 0),
        (["search", bundle, "鞋 é 👟", evil, "-k", "2"], 0),
        (["search", bundle, "\udcff"], 1),
        (["prepare", str(source), "--out", made], 1),
        (["prepare", str(source), "--out", made, "--test", "0", "--validation", "0", "--skip-bad-rows"], 0),
        (["predict", "--bundle", bundle, "--input", str(source), "--output", str(tmp_path / "é.csv")], 0),
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, tmp_path / "commands.json"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert b"Traceback" not in said
    assert not {0x1B, 0x07, 0x9B} & set(said)
    answer = done.stdout.decode(encoding).split("--- 1")[0].removeprefix("--- 0\n")
    assert json.loads(answer)["results"][0]["query"] == "鞋 é 👟"
    assert b"3 rows read = 2 written + 1 skipped" in done.stdout
