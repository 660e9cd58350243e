"""Documents and comments name files of this repository that exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "training|retrieval|service|export|loadtest|doctor|docs|tests|benchmarks|docker|examples"
SOURCE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]+\.(?:py|yaml|yml|html|sh))(?![\w.])")
DECISION = re.compile(r"decisions/(\d{4})")
NAMES = subprocess.run(["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
FILES = [name for name in NAMES.split() if name != "CHANGELOG.md" and (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in FILES}))
def test_named_files_exist(folder: str) -> None:
    """If it fails, a reader looks for a file that was moved or deleted."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES if name.split("/")[0] == folder}
    missing = {
        name: [path for path in SOURCE.findall(text) if not (ROOT / path).exists()] for name, text in texts.items()
    }
    assert not {name: paths for name, paths in missing.items() if paths}


def test_named_decision_records_exist() -> None:
    """If it fails, the reason for a piece of code cannot be found."""
    records = {path.name[:4] for path in (ROOT / "docs" / "decisions").iterdir()}
    for name in FILES:
        assert set(DECISION.findall((ROOT / name).read_text(encoding="utf-8"))) <= records, name


def test_a_missing_file_is_noticed() -> None:
    """If it fails, the checks above pass for any text."""
    assert SOURCE.findall("see `training/no_such_module.py`, and docs/page.md") == ["training/no_such_module.py"]
