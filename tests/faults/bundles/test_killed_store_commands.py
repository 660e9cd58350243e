"""Store commands killed at 200 random moments. `-s` shows the counts."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs.kill_runner import COMMANDS

ROOT = Path(__file__).parents[3]
KILLS, SEED = 200, 1


@pytest.fixture(scope="module")
def kills() -> list[dict[str, Any]]:
    """Run the kills, and return their reports. In memory: on a disk, most kills would hit a flush."""
    in_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        command = [sys.executable, "-m", "tests.support.programs.kill_runner", str(KILLS), str(SEED), folder]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    found = [json.loads(line) for line in ended.stdout.splitlines()]
    for (command_, leaves), count in sorted(Counter((kill["command"], kill["left"] > 0) for kill in found).items()):
        print(f"{count:5}  {command_} killed, {'something' if leaves else 'nothing'} left behind")
    assert len(found) == KILLS
    return found


def test_a_valid_bundle_is_active_after_every_kill(kills: list[dict[str, Any]]) -> None:
    """If it fails, a power cut while a bundle is published, activated or removed leaves a store that cannot be read."""
    assert [kill for kill in kills if kill["outcome"] != "valid"] == []


def test_the_kills_hit_every_command_and_left_something(kills: list[dict[str, Any]]) -> None:
    """If it fails, the kills hit too few different moments, and the test above is weak."""
    assert {kill["command"] for kill in kills} == set(COMMANDS)
    assert sum(kill["left"] > 0 for kill in kills) > 10
    assert sum(kill["left"] == 0 for kill in kills) > 10
