"""What a user gets: the wheel of a folder, installed for serving into a fresh environment, far from the source tree.

python .ci/try_wheel.py dist --constraints constraints.txt

Takes about a minute where hnswlib is compiled, seconds where pip has it.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "v2"
PACKAGES = ("training", "export", "retrieval", "service", "loadtest", "doctor")
PATIENCE_SECONDS = 60
LIBRARY = """
import sys
from retrieval import open_bundle
import diptych
assert not [place for place in sys.path if place == sys.argv[1]], "the source tree is on the path"
with open_bundle("store") as retriever:
    print(retriever.check_golden())
"""


def main() -> None:
    """Raise AssertionError, or CalledProcessError, where the wheel is not what it should be."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("dist", type=Path)
    options.add_argument("--constraints", type=Path, required=True)
    given = options.parse_args()
    wheel, sdist = one(given.dist, "*.whl"), one(given.dist, "*.tar.gz")
    check_contents(wheel, sdist)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        install(folder, wheel.resolve(), given.constraints.resolve())
        shutil.copytree(GOLDEN, folder / "store" / "bundles" / "golden")
        try_commands(folder)
        try_service(folder)
    print(f"{wheel.name} serves from a fresh environment.")


def install(folder: Path, wheel: Path, constraints: Path) -> None:
    """Install the wheel with its dependencies, every file's hash checked."""
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    run(folder, "python", *pip, "--requirement", str(ROOT / ".ci" / "requirements-build.txt"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted = folder / "requirements.txt"
    wanted.write_text(f"diptych[serve,cpu] @ {wheel.as_uri()} --hash=sha256:{digest}\n")
    options = ["--no-build-isolation", "--constraint", str(constraints), "--requirement", str(wanted)]
    run(folder, "python", *pip, *options)


def one(folder: Path, pattern: str) -> Path:
    """The one file of its kind."""
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{folder} has {len(found)} files {pattern}; run `make wheel`."
    return found[0]


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every file of the packages is in both, byte for byte; what is no code too."""
    with zipfile.ZipFile(wheel) as packed, tarfile.open(sdist) as source:
        inside = {name: packed.read(name) for name in packed.namelist() if ".dist-info/" not in name}
        top = sdist.name.removesuffix(".tar.gz")
        tracked = subprocess.run(
            ["git", "ls-files", "diptych.py", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split("\n")[:-1]
        assert sorted(inside) == sorted(tracked), f"the wheel differs from the tree: {set(inside) ^ set(tracked)}"
        for name in tracked:
            unpacked = source.extractfile(f"{top}/{name}")
            assert unpacked is not None, name
            assert unpacked.read() == inside[name] == (ROOT / name).read_bytes(), name


def try_commands(folder: Path) -> None:
    """The command line and the library, as a user meets them first."""
    assert "diptych serve --store store" in run(folder, "diptych", "--help")
    assert run(folder, "diptych", "--version").startswith("diptych ")
    run(folder, "diptych", "bundles", "activate", "store", "golden")
    print(run(folder, "python", "-c", LIBRARY, str(ROOT)).strip())
    hits = json.loads(run(folder, "diptych", "search", "store", "credit card", "-k", "3", "--json"))["results"][0][
        "hits"
    ]
    assert len(hits) == 3, hits
    told = json.loads(run(folder, "diptych", "doctor", "--store", "store", "--json"))
    assert told["ok"], told
    lacking = subprocess.run(
        command(folder, "diptych", "train", "--dataset", "d", "--out", "o"), capture_output=True, text=True, cwd=folder,
        env=environment(), check=False,
    )  # fmt: skip
    assert lacking.returncode == 1, lacking
    assert "pip install 'diptych[train]'" in lacking.stderr, lacking.stderr


def try_service(folder: Path) -> None:
    """Serve the bundle on a free port, ask it, and end it as a supervisor does."""
    log = folder / "log"
    with log.open("w") as written:
        serving = subprocess.Popen(
            command(folder, "diptych", "serve", "--store", "store", "--port", "0"), cwd=folder, env=environment(),
            stdout=written, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        body = json.dumps({"queries": ["credit card"], "k": 3}).encode()
        asked = urllib.request.Request(f"{address(serving, log)}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
            results = json.load(answer)["results"]
        assert len(results[0]["hits"]) == 3, results
        serving.terminate()
        assert serving.wait(PATIENCE_SECONDS) == 0, log.read_text()
    finally:
        serving.kill()
        serving.wait()


def address(serving: "subprocess.Popen[bytes]", log: Path) -> str:
    """Where the service says it listens."""
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until and serving.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    raise AssertionError(f"diptych serve did not start: {log.read_text()}")


def command(folder: Path, program: str, *arguments: str) -> list[str]:
    """A program of the fresh environment."""
    return [str(folder / "env" / "bin" / program), *arguments]


def environment() -> dict[str, str]:
    """Nothing of the caller's that could lead back to the source tree."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(folder: Path, program: str, *arguments: str) -> str:
    """What a program of the fresh environment prints; its own error stands where it fails."""
    ended = subprocess.run(
        command(folder, program, *arguments),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ended.stdout


if __name__ == "__main__":
    sys.exit(main())
