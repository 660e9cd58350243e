"""benchmarks/training_cost.py: the cost of a step can be measured again."""

import subprocess
import sys
from pathlib import Path

from tests.support.training.checkpoints import write_words
from tests.support.training.pretrained import save_tiny_bert

ROOT = Path(__file__).resolve().parents[3]


def test_every_cost_is_printed(tmp_path: Path) -> None:
    """If it fails, the costs in a decision record cannot be reproduced, or one of them is missing."""
    write_words(tmp_path / "dataset")
    model = save_tiny_bert(tmp_path / "bert", ["red", "blue"])
    command = [sys.executable, str(ROOT / "benchmarks" / "training_cost.py"), str(tmp_path / "dataset")]
    command += ["--labels", "300", "900", "--dim", "16", "--steps", "3"]
    command += ["--model", str(model), "--batch-size", "16"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert "900 labels and tokens" in output
    assert "float32: 72 bytes per label" in output
    assert "bfloat16: 40 bytes per label" in output
    assert "preparing its batch is" in output
    assert "clustering and mining take" in output
    assert "GradCache, 64 texts per chunk" in output
    assert "padding in batches of a transformer" in output


def test_a_missing_dataset_is_one_sentence(tmp_path: Path) -> None:
    """If it fails, a mistyped folder ends in a traceback after the long part."""
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
