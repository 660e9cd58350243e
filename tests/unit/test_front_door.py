"""`diptych`: one command a line, each room opened only when somebody walks in."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diptych
from diptych import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a newcomer would not see the way prepare → train → export → serve."""
    assert diptych.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if name in shown] == list(COMMANDS)


def test_alone_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, whoever types the name alone would be scolded instead of shown the way."""
    diptych.main([])
    shown = capsys.readouterr()
    assert "diptych export checkpoint --store store --activate" in shown.out + shown.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a line of the front door would lead nowhere, or a command would come without an example."""
    assert diptych.main([command, "-h"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: diptych {command}" in shown
    assert f"diptych {command}" in shown.partition("Example:")[2]


def test_the_version_stands_in_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, the command, the citation, the chart or the change log would name another release."""
    kept = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert diptych.main(["--version"]) == 0
    assert capsys.readouterr().out == f"diptych {kept}\n"
    for path in (ROOT / "CITATION.cff", *ROOT.glob("*/helm/**/Chart.yaml")):
        if path.is_file():
            found = re.findall(r"^(?:version|appVersion): *[\"']?([^\"'\s]+)", path.read_text(), re.MULTILINE)
            assert set(found) == {kept}, path


def test_only_the_called_room_is_opened() -> None:
    """If this failed, `diptych serve` would load torch, or not start where torch is not installed."""
    program = (
        "import sys, diptych\n"
        "for command in ('search', 'bundles', 'serve'):\n"
        "    assert diptych.main([command, '--help']) == 0\n"
        "print(sorted({'torch', 'transformers', 'training', 'export'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "[]"


def test_a_missing_package_names_the_extra_that_brings_it(tmp_path: Path) -> None:
    """If this failed, `diptych train` in a serving environment would end in a traceback."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import diptych\n"
        "sys.exit(diptych.main(['train', '--dataset', 'd', '--out', 'o']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: `diptych train` needs the package 'torch', which is not installed here. "
        "Install it with: pip install 'diptych[train]'\n"
    )


def test_an_error_is_one_sentence_and_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """If this failed, a wrong path would show a traceback, or a script could not tell that a command failed."""
    assert diptych.main(["evaluate", str(tmp_path), "--dataset", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_wrong_usage_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a misspelt command or option would look like success."""
    assert diptych.main(["trian"]) == 2
    assert "No such command 'trian'" in capsys.readouterr().err
    assert diptych.main(["train", "--dataset", "d"]) == 2


def test_imports_run_one_way() -> None:
    """If this failed, a package would reach into a room above it, and a server might need torch."""
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert "4 kept, 0 broken" in ended.stdout
