"""Run the installation steps of a Dockerfile without a container engine, and test the result.

    python docker/replay.py docker/service.Dockerfile [--build-arg VARIANT=cpu] [--keep FOLDER]

Runs the RUN, ENV and COPY steps of the first stage in a scratch folder instead of the image's root, without apt-get:
the compiler is this machine's. Then tests what the second stage copies: no pip, no torch for the service, and the
golden bundle can be opened and served. Takes minutes, because it downloads everything that the image needs.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "v2"
TIMEOUT_SECONDS = 60
PRINT_INSTALLED = """
import importlib.util, json
names = ("torch", "fastapi", "pip", "onnx", "hatchling")
print(json.dumps({name: importlib.util.find_spec(name) is not None for name in names}))
"""


def main() -> None:
    """Build and test. Raises AssertionError or CalledProcessError if the image would not work."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("dockerfile", type=Path)
    options.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options.add_argument("--keep", type=Path, help="build in this folder and keep it")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (arguments.keep or Path(scratch)).resolve()
        built = build(arguments.dockerfile, root, dict(one.split("=", 1) for one in arguments.build_arg))
        printed = subprocess.run([built / "bin/python", "-c", PRINT_INSTALLED], capture_output=True, check=True).stdout
        installed = json.loads(printed)
        serves = "service" in arguments.dockerfile.name
        assert installed == {
            "torch": not serves,
            "fastapi": serves,
            "pip": False,
            "onnx": not serves,
            "hatchling": False,
        }, installed
        listed = {one["name"] for one in json.loads((built / "share/sbom.cdx.json").read_text())["components"]}
        assert "hnswlib" in listed, listed
        assert "pip" not in listed, listed
        (try_service if serves else try_training)(built, root)
    print(f"{arguments.dockerfile.name}: the installation works.")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return instructions and their arguments, with continued lines joined and comments removed."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines()) if word]


def build(dockerfile: Path, root: Path, build_arguments: dict[str, str]) -> Path:
    """Run the first stage below `root`; returns the Python environment that the image would contain."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    source, stages = root / "src", 0
    source.mkdir(parents=True, exist_ok=True)
    for word, rest in instructions(dockerfile):
        stages += word == "FROM"
        if stages > 1:
            break
        if word == "ARG" and stages:
            name, _, default = rest.partition("=")
            environment[name] = build_arguments.get(name, default)
        elif word == "ENV":
            environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                place = source / Path(name).name if target == "./" else source / target
                copy(ROOT / name, place)
        elif word == "RUN" and "apt-get" not in rest:
            step = rest.replace("/opt/", f"{root}/opt/")
            step = re.sub(r"(^|&& )python ", rf"\1{sys.executable} ", step)
            print(f"$ {step}", flush=True)
            subprocess.run(["sh", "-euc", step], cwd=source, env=environment, check=True)
    return root / "opt/diptych"


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


def try_service(built: Path, root: Path) -> None:
    """Serve the golden bundle as the image would, send a query, and stop it with SIGTERM."""
    store = root / "store"
    shutil.copytree(GOLDEN, store / "bundles" / "golden", dirs_exist_ok=True)
    diptych, bare = [str(built / "bin/diptych")], {"PATH": str(built / "bin"), "HOME": str(root)}  # no compiler
    subprocess.run([*diptych, "bundles", "activate", store, "golden"], env=bare, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    settings = {"DIPTYCH_STORE": str(store), "DIPTYCH_PORT": str(port), "DIPTYCH_LOG_FORMAT": "json"}
    with subprocess.Popen([*diptych, "serve"], env=bare | settings) as serving:
        try:
            while time.monotonic() < started + TIMEOUT_SECONDS and not ready(port):
                assert serving.poll() is None, "the service ended"
                time.sleep(0.1)
            body = json.dumps({"queries": ["credit card"], "k": 3}).encode()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/predict", body, timeout=10) as answer:
                assert len(json.load(answer)["results"][0]["hits"]) == 3
            print(f"answered {time.monotonic() - started:.1f} s after its start")
        finally:
            serving.terminate()
        assert serving.wait(TIMEOUT_SECONDS) == 0


def ready(port: int) -> bool:
    """Return whether the image's health check would pass."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=4):
            return True
    except OSError:
        return False


def try_training(built: Path, root: Path) -> None:
    """Prepare the example, train for two epochs, export and activate, with the image's script."""
    bare = {"PATH": f"{built / 'bin'}:/usr/bin:/bin", "HOME": str(root)}
    folders = {"DATA": ROOT / "examples/keywords", "WORK": root / "work", "STORE": root / "store"}
    variables = {name: str(folder) for name, folder in folders.items()} | {"TRAIN": "--set optimizer.epochs=2"}
    subprocess.run(["sh", ROOT / "docker" / "train.sh"], env=bare | variables, check=True)
    subprocess.run([built / "bin/diptych", "search", root / "store", "credit card", "-k", "3"], env=bare, check=True)


if __name__ == "__main__":
    main()
