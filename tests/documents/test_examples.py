"""The scripts of `examples/`, on a small model."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

from tests.support.pages import ROOT
from training.data.dataset import Dataset

SCRIPT = ROOT / "examples" / "errors" / "errors.py"


def printed_lines(made: Path, *options: str) -> list[str]:
    command = [sys.executable, str(SCRIPT), str(made / "store"), str(made / "dataset"), *options]
    return subprocess.run(command, cwd=made, check=True, capture_output=True, text=True, timeout=300).stdout.split("\n")


def test_errors_are_counted_by_kind_and_explained(made: Path) -> None:
    """If this failed, the example that explains errors would end in an error, or leave queries out."""
    split = Dataset.open(made / "dataset").split("validation")
    lines = printed_lines(made, "--explain", split.texts[0])
    assert lines[0] == f"{len(split.texts)} validation queries, 10 answers each"
    kinds = takewhile(lambda line: "%" in line, lines[1:])
    assert abs(sum(float(line.split("%")[0]) for line in kinds) - 100) < 0.2
    assert any(line.startswith(f"{split.texts[0]!r}: ") for line in lines)
    for part, count in (("answer ", 4), ("right ", min(4, len(split.labels[0]))), ("trained,", 3)):
        assert sum(line.startswith(f"  {part} ") for line in lines) == count


def test_a_query_outside_the_validation_split_is_explained(made: Path) -> None:
    """If this failed, the command of the issue template would not work for the reporter's query."""
    lines = printed_lines(made, "--explain", "an unknown query")
    start = lines.index("'an unknown query': not a validation query; its right labels are unknown")
    assert sum(line.startswith("  answer ") for line in lines[start:]) == 4
    assert not any(line.startswith("  right ") for line in lines[start:])
