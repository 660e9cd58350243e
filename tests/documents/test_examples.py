"""What `examples/` says about a model, on a small one."""

import subprocess
import sys
from itertools import takewhile
from pathlib import Path

from tests.support.pages import ROOT
from training.data.dataset import Dataset

SCRIPT = ROOT / "examples" / "errors" / "errors.py"


def told(made: Path, *more: str) -> list[str]:
    command = [sys.executable, str(SCRIPT), str(made / "store"), str(made / "dataset"), *more]
    return subprocess.run(command, cwd=made, check=True, capture_output=True, text=True, timeout=300).stdout.split("\n")


def test_errors_are_counted_by_kind_and_explained(made: Path) -> None:
    """If this failed, the example that teaches where a model is wrong would end in an error, or leave queries out."""
    split = Dataset.open(made / "dataset").split("validation")
    lines = told(made, "--explain", split.texts[0])
    assert lines[0] == f"{len(split.texts)} validation queries, 10 answers each"
    kinds = takewhile(lambda line: "%" in line, lines[1:])
    assert abs(sum(float(line.split("%")[0]) for line in kinds) - 100) < 0.2
    assert any(line.startswith(f"{split.texts[0]!r}: ") for line in lines)
    for part, count in (("answered", 4), ("true", min(4, len(split.labels[0]))), ("learned,", 3)):
        assert sum(line.startswith(f"  {part} ") for line in lines) == count


def test_a_query_of_ones_own_is_explained_without_a_truth(made: Path) -> None:
    """If this failed, the issue template's way to look into a wrong answer would not work for the reporter's query."""
    lines = told(made, "--explain", "a query that nobody asked")
    start = lines.index("'a query that nobody asked': no validation query, what is true is not known")
    assert sum(line.startswith("  answered ") for line in lines[start:]) == 4
    assert not any(line.startswith("  true ") for line in lines[start:])
