"""`diptych doctor`: the tests create the problems that it reports, as far as one machine allows."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from doctor import machine
from doctor.findings import Finding
from doctor.store import check_store
from retrieval.bundle.manifest import VECTORS
from retrieval.bundle.signatures import SIGNING_KEY, TRUSTED_KEYS, new_keys
from retrieval.open import open_store
from retrieval.store.local import Store
from tests.support.bundles import make_store
from tests.support.command import run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_store(tmp_path_factory.mktemp("doctor") / "store", "one")


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    """Create a store that the test may change."""
    return open_store(shutil.copytree(made.path, tmp_path / "store"))


def by_topic(place: Path, groups: Path = machine.GROUPS) -> dict[str, Finding]:
    return {one.topic: one for one in check_store(str(place), groups)}


def findings_of_process(program: str = "", path: Path = ROOT, *arguments: str) -> tuple[int, dict[str, Finding]]:
    """Return exit code and findings of a new process, which runs `program` first and imports from `path` first."""
    command = (
        f"import sys; {program or 'pass'}\nimport diptych\nsys.exit(diptych.main(['doctor', '--json', *sys.argv[1:]]))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DIPTYCH_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (path, ROOT)))
    ended = subprocess.run(
        [sys.executable, "-c", command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr
    content = json.loads(ended.stdout)
    assert content["ok"] == (ended.returncode == 0)
    return ended.returncode, {one["topic"]: Finding(**one) for one in content["findings"]}


def distribution(folder: Path, name: str, version: str, *needs: str) -> None:
    """Create a distribution as pip installs it, without its code."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {one}" for one in needs),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def test_a_complete_store_and_environment_have_no_problems(store: Store) -> None:
    """If it fails, the doctor reports problems on a machine without any."""
    code, found = findings_of_process("", ROOT, "--store", str(store.path))
    assert {topic: one for topic, one in found.items() if one.state == "problem"} == {}
    assert code == 0
    assert found["active bundle"].value.startswith("one: 3 golden queries")
    assert all(found[topic].state == "ok" for topic in ("for train", "for export", "for serve", "hnswlib", "PyTorch"))


def test_the_table_shows_advice(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """If it fails, the table or the exit code hides a problem."""
    (store.path / "CURRENT").unlink()
    assert run("doctor", "--store", store.path) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "active bundle problem" in shown
    assert "→ Export one with `diptych export CHECKPOINT --store STORE --activate`." in shown
    assert "1 problem" in shown


def test_a_damaged_bundle_is_a_problem(store: Store) -> None:
    """If it fails, a store that cannot be served is called healthy."""
    file = store.bundle_path("one") / VECTORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    found = by_topic(store.path)["active bundle"]
    assert found.state == "problem"
    assert VECTORS in found.value
    assert found.advice.endswith(".")


def test_a_path_that_is_not_a_store_is_a_problem(tmp_path: Path) -> None:
    """If it fails, a misspelt folder looks like an empty store."""
    found = by_topic(tmp_path / "absent")["store"]
    assert (found.state, found.value) == ("problem", f"{tmp_path / 'absent'} is not a folder")


def test_a_signature_is_required_with_trusted_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a service refuses at start what the doctor had passed."""
    keys = new_keys()
    assert by_topic(store.path)["signature"].state == "ok"
    monkeypatch.setenv(TRUSTED_KEYS, keys.trusted)
    assert "is not signed" in by_topic(store.path)["active bundle"].value
    monkeypatch.setenv(SIGNING_KEY, keys.signing)
    store.sign("one", keys.signing)
    assert by_topic(store.path)["signature"].state == "ok"
    monkeypatch.delenv(TRUSTED_KEYS)
    assert by_topic(store.path)["signature"].state == "note"


@pytest.mark.parametrize(("limit_mb", "state"), [(64, "problem"), (150, "note"), (4096, "ok")])
def test_the_memory_limit_of_the_container_counts(store: Store, tmp_path: Path, limit_mb: int, state: str) -> None:
    """If it fails, the kernel ends a service that the doctor had passed, or beside whose engine it opened the bundle
    again; or the first switch is refused."""
    groups = tmp_path / "groups"
    for folder in (groups, groups / "memory"):  # version 2, version 1
        folder.mkdir()
        for name, value in (("memory.max", limit_mb), ("memory.limit_in_bytes", limit_mb)):
            (folder / name).write_text(str(value << 20))
        for name in ("memory.current", "memory.usage_in_bytes"):
            (folder / name).write_text("0")
    found = by_topic(store.path, groups)
    assert found["memory for it"].state == state
    assert ("active bundle" in found) == (state != "problem")


def test_a_processor_without_avx2(tmp_path: Path) -> None:
    """If it fails, the reason why a bundle is slower on another machine is not reported."""
    (tmp_path / "cpuinfo").write_text("model name\t: Old One\nflags\t\t: sse2 sse4_2 avx\n\nmodel name\t: other\n")
    found = {one.topic: one for one in machine.processor(tmp_path)}
    assert found["processor"].value.startswith("Old One, AVX")
    assert found["int8 products"].state == "note"


def test_too_few_open_files() -> None:
    """If it fails, `diptych serve` refuses to start where the doctor saw nothing."""
    code, found = findings_of_process("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))")
    assert code == 1
    assert found["open files"].advice == (
        "`diptych serve` needs 4,352: raise `ulimit -n`, or set DIPTYCH_MAX_CONNECTIONS=744."
    )


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If it fails, exports and downloads end in a system error that the doctor could have reported."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    assert machine.temporary().state == "problem"


def test_two_builds_of_onnx_runtime(tmp_path: Path) -> None:
    """If it fails, a GPU install silently runs the other build, whichever was copied last."""
    distribution(tmp_path, "onnxruntime-gpu", "1.20")
    code, found = findings_of_process("", tmp_path)
    assert (code, found["ONNX Runtime"].state) == (1, "problem")
    assert "are both installed" in found["ONNX Runtime"].value


def test_a_package_of_a_wrong_version(tmp_path: Path) -> None:
    """If it fails, an outdated package is noticed by a traceback in the middle of an export."""
    distribution(tmp_path, "onnx", "1.0")
    code, found = findings_of_process("", tmp_path)
    assert (code, found["for export"].state) == (1, "problem")
    assert found["for export"].value == "onnx 1.0; >=1.17 is needed"


def test_a_missing_package_names_its_extra(tmp_path: Path) -> None:
    """If it fails, a command whose packages are missing is reported as working."""
    distribution(tmp_path, "diptych", "9.9", "no-such-base", "no-such-server>=1; extra == 'serve'")
    code, found = findings_of_process("", tmp_path)
    assert code == 1
    assert (found["base packages"].state, found["base packages"].value) == ("problem", "no-such-base")
    assert (found["for serve"].state, found["for serve"].value) == ("note", "not installed: no-such-server")
    assert "pip install 'diptych[serve]'" in found["for serve"].advice


def test_a_library_for_another_processor(tmp_path: Path) -> None:
    """If it fails, the doctor itself crashes with an illegal instruction."""
    (tmp_path / "hnswlib.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)\n")
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')\n")
    code, found = findings_of_process("", tmp_path)
    assert code == 1
    assert found["hnswlib"].value == "the process ended by SIGILL"
    assert "HNSWLIB_NO_NATIVE=1" in found["hnswlib"].advice
    assert "libcudart" in found["PyTorch"].value


def test_it_needs_neither_the_service_nor_training(tmp_path: Path, store: Store) -> None:
    """If it fails, the doctor fails where packages are missing, which is what it should report."""
    for name in (
        "torch",
        "transformers",
        "yaml",
        "onnx",
        "fastapi",
        "uvicorn",
        "pydantic_settings",
        "fsspec",
        "psutil",
    ):
        (tmp_path / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        )
    _, found = findings_of_process("", tmp_path, "--store", str(store.path))
    assert found["active bundle"].state == "ok"
