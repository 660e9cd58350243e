"""The command line: its help, its exit codes, and that only the called command's module is imported."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import diptych
from diptych import COMMANDS

ROOT = Path(__file__).resolve().parents[3]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a new user would not find a command."""
    assert diptych.main(["--help"]) == 0
    output = capsys.readouterr().out
    assert [name for name in COMMANDS if name in output] == list(COMMANDS)


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, `diptych` without a command would print an error instead of the quick start."""
    diptych.main([])
    output = capsys.readouterr()
    assert "diptych export checkpoint --store store --activate" in output.out + output.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_own_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a command in the help would not exist, or its help would have no example."""
    assert diptych.main([command, "-h"]) == 0
    output = capsys.readouterr().out
    assert f"Usage: diptych {command}" in output
    assert f"diptych {command}" in output.partition("Example:")[2]


def test_all_files_name_the_same_version(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, the command, the citation or the Helm chart would name another release."""
    released = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert diptych.main(["--version"]) == 0
    assert capsys.readouterr().out == f"diptych {released}\n"
    for path in (ROOT / "CITATION.cff", *ROOT.glob("*/helm/**/Chart.yaml")):
        if path.is_file():
            versions = re.findall(r"^(?:version|appVersion): *[\"']?([^\"'\s]+)", path.read_text(), re.MULTILINE)
            assert set(versions) == {released}, path


def test_only_the_called_command_is_imported() -> None:
    """If this failed, `diptych serve` would load torch, or not start where torch is not installed."""
    program = (
        "import sys, diptych\n"
        "for command in ('search', 'bundles', 'serve'):\n"
        "    assert diptych.main([command, '--help']) == 0\n"
        "print(sorted({'torch', 'transformers', 'training', 'export'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_missing_package_names_the_extra_to_install(tmp_path: Path) -> None:
    """If this failed, `diptych train` in a serving environment would end in a traceback."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import diptych\n"
        "sys.exit(diptych.main(['train', '--dataset', 'd', '--out', 'o']))"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "error: `diptych train` needs the package 'torch', which is not installed. "
        "Install it with: pip install 'diptych[train]'\n"
    )


def test_an_error_is_one_sentence_and_code_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """If this failed, a wrong path would print a traceback, or a script could not detect the failure."""
    assert diptych.main(["evaluate", str(tmp_path), "--dataset", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_wrong_usage_is_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    """If this failed, a misspelt command or option would have the exit code of success."""
    assert diptych.main(["trian"]) == 2
    assert "No such command 'trian'" in capsys.readouterr().err
    assert diptych.main(["train", "--dataset", "d"]) == 2


def test_imports_run_one_way() -> None:
    """If this failed, a package would import one above it, and a server might need torch."""
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run([str(linter), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
    assert " 0 broken" in ended.stdout
