"""The sandbox of a process that opens a bundle: it can read the bundle and Python, calculate and answer only."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from retrieval.errors import BadInput
from retrieval.system.sandbox import (
    NO_LANDLOCK,
    child_environment,
    confine,
    data_limit,
    folder_bytes,
    missing,
    missing_by_package,
    sandbox_mode,
)
from tests.support.bundles import make_store
from tests.support.service import serving

ROOT = Path(__file__).resolve().parents[3]

ATTEMPTS = """
import json, os, signal, socket, subprocess, sys, threading
from pathlib import Path
from retrieval.system.sandbox import confine, limit

inside, outside, port = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
limit(4 << 30, file_bytes=1 << 20)
lacks = confine([inside], sys.argv[4])

def outcome(attempt):
    try:
        attempt()
    except MemoryError:
        return "MemoryError"
    except OSError as error:
        return type(error).__name__
    return "done"

def fork():
    if os.fork() == 0:
        os._exit(0)

attempts = {
    "read inside": lambda: (inside / "file").read_bytes(),
    "read outside": lambda: (outside / "file").read_bytes(),
    "read the secrets of the parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "list outside": lambda: os.listdir(outside),
    "write inside": lambda: (inside / "file").write_bytes(b"changed"),
    "make a file": lambda: (inside / "new").write_bytes(b""),
    "remove": lambda: (inside / "file").unlink(),
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 5),
    "start a program": lambda: subprocess.run(["/bin/true"]),
    "fork": fork,
    "signal the parent": lambda: os.kill(os.getppid(), 0),
    "signal the parent through a descriptor": lambda: signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0),
    "take memory": lambda: bytearray(8 << 30),
    "start a thread": lambda: threading.Thread(target=int).start(),
}
print(json.dumps({"lacks": lacks} | {name: outcome(attempt) for name, attempt in attempts.items()}))
"""


def attempted(tmp_path: Path, mode: str) -> dict[str, object]:
    for name in ("inside", "outside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"content")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(tmp_path / "inside"), str(tmp_path / "outside"), str(server.getsockname()[1]), mode]
        command = [sys.executable, "-c", ATTEMPTS, *arguments]
        ended = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, object] = json.loads(ended.stdout)
    return found


def test_a_confined_process_reads_its_bundle_and_does_nothing_else(tmp_path: Path) -> None:
    """If it fails, native code that a hostile bundle controls can read keys, change files or open connections."""
    if lacks := missing():
        pytest.skip(f"this system has no sandbox: {', '.join(lacks)}")
    found = attempted(tmp_path, "required")
    allowed = {name for name, outcome in found.items() if outcome == "done"}
    assert allowed == {"read inside", "start a thread"}
    assert found["lacks"] == []
    assert found["take memory"] == "MemoryError"
    assert (tmp_path / "inside" / "file").read_bytes() == b"content"


def test_memory_is_bounded_without_a_sandbox_too(tmp_path: Path) -> None:
    """If it fails, switching the sandbox off also removes the resource limits, or does not switch it off."""
    found = attempted(tmp_path, "off")
    assert found["take memory"] == "MemoryError"
    assert found["read outside"] == "done"


def test_children_get_no_credentials() -> None:
    """If it fails, credentials are in the memory of the process that opens a hostile bundle."""
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "1", "AWS_SESSION_TOKEN": "1", "GOOGLE_APPLICATION_CREDENTIALS": "1",
        "AZURE_STORAGE_CONNECTION_STRING": "1", "DIPTYCH_ADMIN_KEY": "1", "DIPTYCH_SIGNING_KEY": "1", "HF_TOKEN": "1",
        "DATABASE_URL": "postgres://me:secret@host", "PYTHON_KEYRING_PASSWORD": "1", "SSH_AUTH_SOCK": "1",
        "ORT_API_KEY": "1", "http_proxy": "http://me:secret@proxy",
    }  # fmt: skip
    harmless = {"PATH": "/bin", "LC_ALL": "C", "OMP_NUM_THREADS": "2", "TOKENIZERS_PARALLELISM": "false", "TZ": "UTC"}
    assert child_environment(secrets | harmless).keys() == harmless.keys() | {"PYTHONPATH"}


@pytest.mark.parametrize("written", ["yes", "OFF", "none"])
def test_a_mistyped_mode_is_refused(written: str) -> None:
    """If it fails, a typing error switches the sandbox off without an error."""
    with pytest.raises(BadInput, match="must be auto, required or off"):
        sandbox_mode(written)


def test_an_engine_is_confined_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, engines have credentials, or run without a sandbox although the operator required one."""
    if missing():
        pytest.skip("this system has no sandbox")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = make_store(tmp_path / "store", "one")
    with serving(store.path, sandbox="required") as service:
        assert service.ask("POST", "/predict", {"queries": ["red shoes"], "k": 1}).status == 200
        (engine,) = service.engines()
        status = dict(line.split(":", 1) for line in Path(f"/proc/{engine}/status").read_text().splitlines())
        assert status["Seccomp"].strip() == "2"
        assert status["NoNewPrivs"].strip() == "1"
        environment = Path(f"/proc/{engine}/environ").read_bytes()
        assert b"secret" not in environment
        limits = Path(f"/proc/{engine}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max data size +\d+ +\d+ ", limits)
        for file in store.bundle_path("one").iterdir():
            os.truncate(file, 0)  # a mapped file would end the engine now
        assert service.ask("POST", "/predict", {"queries": ["light rain"], "k": 50}).status == 200
        assert service.engines() == [engine]


def test_missing_system_features_are_logged_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, engines silently run without a sandbox, or a service that requires one starts without it."""
    store = make_store(tmp_path / "store", "one")
    (tmp_path / "path").mkdir()
    program = "import importlib.util as util\nfound = util.find_spec\n"
    program += (
        "util.find_spec = lambda name, *rest: None if name in ('landlockpy', 'seccompy') else found(name, *rest)\n"
    )
    (tmp_path / "path" / "sitecustomize.py").write_text(program)
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "path"), before]))
    with serving(store.path) as service:
        assert service.ask("POST", "/predict", {"queries": ["red shoes"], "k": 1}).status == 200
        assert service.log.count("opened without a full sandbox: the package landlockpy is not installed") == 1
    with (
        pytest.raises(AssertionError, match="DIPTYCH_SANDBOX is required, and the package"),
        serving(store.path, sandbox="required"),
    ):
        pass


def test_each_part_of_the_sandbox_is_tested_on_its_own() -> None:
    """If it fails, one missing package hides that the kernel lacks a feature, and `confine` fails."""
    lacks = missing_by_package(
        find=lambda name: None if name == "seccompy" else name,
        load=lambda name: SimpleNamespace(supported=lambda: False),
    )
    assert list(lacks.values()) == [NO_LANDLOCK, "the package seccompy is not installed"]
    assert confine([], "auto", lacks) == list(lacks.values())


def test_the_memory_limit_follows_the_files_that_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a huge unused file raises the memory limit, or an unreadable folder makes it too low."""
    (tmp_path / "vectors.npy").write_bytes(b"x" * 1000)
    limit = data_limit(tmp_path)
    (tmp_path / "label_encoder.onnx.data").write_bytes(b"x" * 1000)
    assert (data_limit(tmp_path), folder_bytes(tmp_path), folder_bytes(tmp_path / "none")) == (limit, 2000, 0)

    def refused(path: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(OSError, match="Too many open files"):
        data_limit(tmp_path)
