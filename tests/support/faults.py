"""Faults inside the processes of a real service, by code that runs in them before a module is imported.

with_code_before(tmp_path, monkeypatch, "service.engine.worker", "raise OSError('injected')")
"""

from pathlib import Path

import pytest

HOOK = """
import sys

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and self in sys.meta_path:
            sys.meta_path.remove(self)
            exec({code!r}, {{}})
        return None

sys.meta_path.insert(0, Hook())
"""
HANG = """
import os, sys, time
while any(one.endswith("/bundles/" + {bundle!r}) for one in sys.argv) and not os.path.exists({gate!r}):
    time.sleep(0.01)
"""


def with_code_before(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str) -> None:
    """Run `code` in every Python process that starts from now on, just before it imports `module`."""
    (folder / "sitecustomize.py").write_text(HOOK.format(module=module, code=code))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def with_hanging_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch, bundle: str) -> Path:
    """Let engines of this bundle hang while they load, until the returned file exists."""
    gate = folder / "gate"
    with_code_before(folder, monkeypatch, "service.engine.worker", HANG.format(bundle=bundle, gate=str(gate)))
    return gate
