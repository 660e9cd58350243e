"""Documents name files, decision records and settings that exist; comments name files and records that exist."""

import re
import subprocess
from pathlib import Path

import pytest

from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "training|retrieval|service|export|loadtest|doctor|docs|tests|benchmarks|docker|examples"
SOURCE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.-]+\.(?:py|yaml|yml|html|sh))(?![\w.])")
DECISION = re.compile(r"decisions/(\d{4})")
SETTING = re.compile(rf"{PREFIX}([A-Z_]*[A-Z])")
OTHER_VARIABLES = {"SIGNING_KEY", "TRUSTED_KEYS", "SANDBOX", "CACHE"}  # of other commands
NAMES = subprocess.run(["git", "ls-files", "*.md", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
FILES = [name for name in NAMES.split() if name != "CHANGELOG.md" and (ROOT / name).is_file()]


@pytest.mark.parametrize("folder", sorted({name.split("/")[0] for name in FILES}))
def test_named_files_exist(folder: str) -> None:
    """If this failed, a reader would look for a file that was moved or deleted."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in FILES if name.split("/")[0] == folder}
    missing = {
        name: [path for path in SOURCE.findall(text) if not (ROOT / path).exists()] for name, text in texts.items()
    }
    assert not {name: paths for name, paths in missing.items() if paths}


def test_named_decision_records_exist() -> None:
    """If this failed, the reason for a piece of code could not be found."""
    records = {path.name[:4] for path in (ROOT / "docs" / "decisions").iterdir()}
    for name in FILES:
        assert set(DECISION.findall((ROOT / name).read_text(encoding="utf-8"))) <= records, name


def test_named_settings_exist() -> None:
    """If this failed, an operator would set a variable that was renamed or deleted, without effect."""
    known = {name.upper() for name in Settings.model_fields} | OTHER_VARIABLES
    for name in FILES:
        if name.endswith(".md") and not name.startswith("benchmarks/results"):
            assert set(SETTING.findall((ROOT / name).read_text(encoding="utf-8"))) <= known, name


def test_a_missing_file_is_noticed() -> None:
    """If this failed, the checks above would pass for any text."""
    missing = "training/" + "no_such_module.py"  # in two parts, because this file is checked too
    assert SOURCE.findall(f"see `{missing}`, and docs/page.md") == [missing]
