"""ONNX Runtime's telemetry is off wherever Diptych loads it."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "modules", ["retrieval.search.encoder", "diptych, export.int8", "export.commands, export.int8"]
)
def test_no_telemetry_is_stored(modules: str, tmp_path: Path) -> None:
    """Hashes of a user's models would be sent to a third party, and a device id would be stored in the user's home."""
    bare = {"HOME": str(tmp_path)}  # neither CI nor anything else that would switch it off by itself
    subprocess.run([sys.executable, "-c", f"import {modules}"], env=bare, check=True)
    assert not list(tmp_path.iterdir())
