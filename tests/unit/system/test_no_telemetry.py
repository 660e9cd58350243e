"""ONNX Runtime's telemetry is off wherever Diptych loads it."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "modules", ["retrieval.search.encoder, onnxruntime", "diptych, export.int8", "export.commands, export.int8"]
)
def test_nothing_is_kept_for_telling_others(modules: str, tmp_path: Path) -> None:
    """If it fails, hashes of models are sent to a third party, and a device id is stored in the home folder."""
    bare = {"HOME": str(tmp_path)}  # neither CI nor anything else that would switch it off by itself
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=bare, check=True)
    assert not list(tmp_path.iterdir())
