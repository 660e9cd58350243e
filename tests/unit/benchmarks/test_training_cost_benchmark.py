"""benchmarks/training_cost.py: what a step costs can be measured again."""

import subprocess
import sys
from pathlib import Path

from tests.support.checkpoints import write_words
from tests.support.pretrained import save_tiny_bert

ROOT = Path(__file__).resolve().parents[3]


def test_every_cost_is_told(tmp_path: Path) -> None:
    """If this failed, the cost table of a note could not be made again, or would miss one of its figures."""
    write_words(tmp_path / "dataset")
    model = save_tiny_bert(tmp_path / "bert", ["red", "blue"])
    command = [sys.executable, str(ROOT / "benchmarks" / "training_cost.py"), str(tmp_path / "dataset")]
    command += ["--labels", "300", "900", "--dim", "16", "--steps", "3"]
    command += ["--model", str(model), "--batch-size", "16"]
    told = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "900 labels and tokens" in told
    assert "float32: 72 bytes a label" in told
    assert "bfloat16: 40 bytes a label" in told
    assert "of which preparing its batch" in told
    assert "clustering and mining take" in told
    assert "64 texts at once, two passes" in told
    assert "padding of these texts" in told


def test_a_dataset_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """If this failed, a mistyped folder would end in a traceback after the long part."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "training_cost.py"),
        str(tmp_path / "no"),
        "--labels",
        "300",
        "--steps",
        "1",
    ]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "labels and tokens" not in ended.stdout
