"""Shell completion: the words that bash, zsh and fish offer for TAB."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych import COMMANDS
from tests.support.bundles import make_store

DIPTYCH = str(Path(sys.executable).with_name("diptych"))
SHELLS = ["bash", "zsh", "fish"]


def complete(**variables: str) -> subprocess.CompletedProcess[str]:
    """Run `diptych` as a shell's completion function does."""
    return subprocess.run([DIPTYCH], env=os.environ | variables, capture_output=True, text=True, check=False)


def offered(line: str, shell: str) -> str:
    """Return the completions of the last word of a line."""
    variables = {"_DIPTYCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    if shell == "bash":
        variables |= {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    else:
        variables["_TYPER_COMPLETE_ARGS"] = line
    ended = complete(**variables)
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_is_offered_the_commands(shell: str) -> None:
    """If it fails, commands whose module is not imported are not completed."""
    output = offered("diptych ", shell)
    assert [name for name in COMMANDS if name not in output] == []
    assert "loadtest" not in offered("diptych se", shell)


@pytest.mark.parametrize("shell", SHELLS)
def test_values_are_offered(shell: str, tmp_path: Path) -> None:
    """If it fails, names of bundles and recipes are not completed."""
    store = make_store(tmp_path / "store", "monday", "tuesday")
    assert "tuesday" in offered(f"diptych bundles activate {store.path} ", shell)
    assert "monday" not in offered(f"diptych bundles diff {store.path} t", shell)
    assert "systems/ngame" in offered("diptych train --recipe sys", shell)
    assert "validation" in offered("diptych evaluate checkpoint --split v", shell)
    assert "--min-score" in offered("diptych search --m", shell)


def test_a_store_that_cannot_be_listed_offers_nothing() -> None:
    """If it fails, TAB prints a traceback into the line, or waits for the network."""
    for place in ("/no/such/store", "s3://bucket/store"):
        assert offered(f"diptych bundles show {place} ", "bash").strip() == ""


def test_bash_completes_a_line(tmp_path: Path) -> None:
    """If it fails, the script that `--show-completion` prints does not work in a real shell."""
    script = complete(_DIPTYCH_COMPLETE="source_bash").stdout
    make_store(tmp_path / "store", "monday")
    program = (
        f"{script}\nCOMP_WORDS=(diptych bundles show {tmp_path}/store '')\nCOMP_CWORD=4\n"
        '_diptych_completion diptych\necho "${COMPREPLY[@]}"\n'
    )
    path = f"{Path(DIPTYCH).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "--norc", "-c", program], env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["monday"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_script(shell: str) -> None:
    """If it fails, every new terminal prints a syntax error after `--install-completion`."""
    script = complete(_DIPTYCH_COMPLETE=f"source_{shell}").stdout
    assert "_DIPTYCH_COMPLETE" in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed here")
    subprocess.run([shell, "-n", "-c", script], check=True)
