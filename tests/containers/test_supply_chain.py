"""Downloads for builds, tests and images are pinned exactly, and their bytes are checked."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.containers.test_compose import COMPOSE, DOCKERFILES, ROOT, SERVICES, instructions, tool

PINS = [
    "constraints.txt",
    "docker/constraints-torch-cuda.txt",
    "docker/constraints-gpu.txt",
    ".ci/requirements-build.txt",
]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DIGEST = "sha256:" + "ab" * 32

lock = runpy.run_path(str(ROOT / ".ci" / "lock.py"))
pin_images = runpy.run_path(str(ROOT / "docker" / "pin_images.py"))
requirements = runpy.run_path(str(ROOT / ".ci" / "requirements.py"))["requirements"]


def pins(name: str) -> dict[str, tuple[Requirement, list[str]]]:
    """The requirement and the hashes of each package of a file."""
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for entry in re.split(r"\n(?=[^\s#])", (ROOT / name).read_text()):
        written, *hashes = re.split(r"\s*\\\n\s*", entry.strip())
        if not written.startswith("#"):
            requirement = Requirement(written)
            assert canonicalize_name(requirement.name) not in found, requirement.name
            found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


@pytest.mark.parametrize("name", PINS)
def test_every_pin_is_exact_and_has_hashes(name: str) -> None:
    """`pip install --require-hashes` would fail, or install a file that was replaced."""
    found = pins(name)
    assert found
    for package, (requirement, hashes) in found.items():
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), package
        assert hashes, package
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), package


def test_every_dependency_is_pinned_within_its_range() -> None:
    """A new dependency would break `make install`: `make lock` has not been run after a change in pyproject.toml."""
    pinned = pins("constraints.txt")
    wanted = [Requirement(one) for one in requirements(PROJECT["project"], ["export", "serve", "cpu", "dev"])]
    wanted += [Requirement(one) for one in PROJECT["build-system"]["requires"]]
    for one in wanted:
        name = canonicalize_name(one.name)
        assert name in pinned, f"{name} has no hashes; run `make lock`"
        assert one.specifier.contains(next(iter(pinned[name][0].specifier)).version), name


def test_both_builds_of_torch_are_known() -> None:
    """The images, which use PyTorch's CPU build, or a machine without its index could not install torch."""
    requirement, hashes = pins("constraints.txt")["torch"]
    version = next(iter(requirement.specifier)).version
    cpu = {f"--hash=sha256:{one}" for one in lock["TORCH_CPU"][version].values()}
    assert cpu < set(hashes)
    assert len(cpu) == 6  # three Pythons, two processors


def test_pins_agree_where_they_are_installed_together() -> None:
    """pip would find no version that all files allow, or an image would have another version than was tested."""
    everything = pins("constraints.txt")
    for name in PINS[1:]:
        for package, (requirement, hashes) in pins(name).items():
            if package in everything:
                assert str(requirement.specifier) == str(everything[package][0].specifier), (name, package)
                assert set(hashes) <= set(everything[package][1]), (name, package)
    pip = next(iter(pins(".ci/requirements-build.txt")["pip"][0].specifier)).version
    assert Version(pip) >= Version("26.1")  # older ones read no hashes from constraints files


def test_nothing_is_installed_without_hashes() -> None:
    """A build with one option missing would install any file that a package index serves."""
    steps = [rest for path in DOCKERFILES for word, rest in instructions(path) if word == "RUN"]
    recipes = re.sub(r"\\\n\s*", " ", (ROOT / "Makefile").read_text()).replace("$(HASHED)", "--require-hashes")
    steps += recipes.splitlines()
    steps += [step.get("run", "") for path in WORKFLOWS for job in jobs(path).values() for step in job["steps"]]
    commands = [one for step in steps for one in re.split(r"&&|\|\||;", step) if re.search(r"\bpip\b.* install\b", one)]
    assert len(commands) > 8
    for command in commands:
        assert "--require-hashes" in command or "--no-index --no-deps" in command, command
    wheel = (ROOT / ".ci" / "try_wheel.py").read_text()
    assert "--require-hashes" in wheel


def test_every_image_has_a_digest() -> None:
    """An image would change under the same commit whenever a tag is moved."""
    for name in pin_images["FILES"]:
        found = pin_images["images"]((ROOT / name).read_text())
        assert found
        assert all(image["digest"] for image in found), name
    named = [
        pin_images["reference"](image) for image in pin_images["images"]((ROOT / "docker-compose.yml").read_text())
    ]
    ours = {"diptych-service", "diptych-training"}  # built by compose, never pulled
    built = [service["image"] for service in SERVICES.values() if service["image"] in ours]
    assert len(named) + len(built) == len(SERVICES)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program in place of docker that prints the content of the file `digest` and records what it was asked."""
    program = tmp_path / "docker"
    program.write_text(f'#!/bin/sh\necho "$4" >>{tmp_path}/asked\ncat {tmp_path}/digest\n')
    program.chmod(0o755)
    (tmp_path / "digest").write_text(DIGEST)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize("name", ["docker-compose.yml", "docker/service.Dockerfile"])
def test_digests_are_written_and_checked(registry: Path, name: str) -> None:
    """`make images` would write nothing, or the weekly check would ignore the registry's answer."""
    text = (ROOT / name).read_text()
    written = pin_images["pinned"](text)
    assert set(re.findall(r"sha256:\w+", written)) == {DIGEST}
    assert re.sub(r"sha256:\w+", "", written) == re.sub(r"sha256:\w+", "", text)
    assert all("@" not in line for line in (registry / "asked").read_text().splitlines())
    assert pin_images["check"](written, name) == []
    (registry / "digest").write_text("")
    assert all("the registry has no" in one for one in pin_images["check"](written, name))
    with pytest.raises(SystemExit, match="No registry gave a digest"):
        pin_images["pinned"](text)
    without = re.sub(r"@sha256:\w+", "", text)
    assert all("has no digest; run `make images`" in one for one in pin_images["check"](without, name))
    assert len(pin_images["check"](without, name)) == len(pin_images["images"](text))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_fit_their_schema(path: Path) -> None:
    """GitHub would ignore the file, and nothing would be tested or audited."""
    check = tool("check-jsonschema", "pip install check-jsonschema")
    command = [check, "--builtin-schema", "vendor.github-workflows", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_do_little(path: Path) -> None:
    """A compromised action, or a pull request, could change the repository or run for hours."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]
    assert "pull_request_target" not in path.read_text()
    for name, job in workflow["jobs"].items():
        assert "permissions" not in job, name
        assert 0 < job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            if action := step.get("uses"):
                assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
            if action and action.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), "an expression in a script is run by the shell"


def test_everything_pinned_is_audited_every_week() -> None:
    """A known vulnerability in a pinned package would stay undetected."""
    audit = yaml.safe_load((ROOT / ".github/workflows/audit.yml").read_text())
    assert sorted(audit["jobs"]["packages"]["strategy"]["matrix"]["pins"]) == sorted(PINS)
    assert audit[True]["schedule"]  # YAML reads the key `on` as true
    steps = [step.get("run", "") for job in audit["jobs"].values() for step in job["steps"]]
    assert any(step.startswith("pip-audit --require-hashes --disable-pip") for step in steps)
    assert "python3 docker/pin_images.py --check" in steps


@pytest.mark.parametrize("name", PINS)
def test_the_audit_can_read_what_is_pinned(name: str) -> None:
    """The weekly audit would fail because of the file's format, and be disabled."""
    audit = tool("pip-audit", "pip install pip-audit")
    command = [
        audit,
        "--require-hashes",
        "--disable-pip",
        "--dry-run",
        "--progress-spinner",
        "off",
        "-r",
        str(ROOT / name),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here = [one for one, _ in pins(name).values() if Marker(str(one.marker or "python_version > '3'")).evaluate()]
    assert f"would have audited {len(here)} packages" in done.stderr


def test_the_sbom_lists_what_is_installed(tmp_path: Path) -> None:
    """The list would not show whether a package with a known vulnerability is installed."""
    made = tmp_path / "sbom.cdx.json"
    command = [tool("cyclonedx-py", "pip install cyclonedx-bom"), "environment", "--pyproject", "pyproject.toml"]
    command += [
        "--mc-type",
        "application",
        "--spec-version",
        "1.6",
        "--output-reproducible",
        "--no-validate",
    ]  # as `make sbom` does
    subprocess.run([*command, "--output-file", str(made), sys.executable], cwd=ROOT, check=True, capture_output=True)
    sbom = json.loads(made.read_text())
    assert (sbom["bomFormat"], sbom["specVersion"], sbom["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "1.6",
        "diptych",
    )
    listed = {canonicalize_name(one["name"]): one["version"] for one in sbom["components"]}
    assert {"numpy", "pyarrow", "onnxruntime", "hnswlib", "fastapi", "uvicorn"} <= set(listed)
    assert listed["numpy"] == next(iter(pins("constraints.txt")["numpy"][0].specifier)).version
    assert all(one["purl"].startswith("pkg:pypi/") for one in sbom["components"] if one["name"] in ("numpy", "torch"))


def test_make_and_the_images_write_an_sbom() -> None:
    """A release would have no list of its packages."""
    assert "dist/sbom.cdx.json" in (ROOT / "Makefile").read_text()
    assert "make sbom" in (ROOT / ".ci" / "run").read_text()
    for path in DOCKERFILES:
        assert any("cyclonedx-py environment" in rest for word, rest in instructions(path) if word == "RUN"), path.name


def test_no_password_has_a_default() -> None:
    """Any client that can reach the port, or read this repository, could administer Grafana."""
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "docker/gpu.yml").read_text()
    text += "".join(path.read_text() for path in (ROOT / "docker" / "helm").rglob("*.yaml"))
    for name, default in re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|KEY|TOKEN)\w*):?-([^}]*)\}", text):
        assert default == "", name
    assert not re.search(r"password: *['\"]?\w", text, re.IGNORECASE)
    grafana = COMPOSE["services"]["grafana"]["environment"]
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"  # else it makes admin with password admin
    assert grafana["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert grafana["GF_AUTH_BASIC_ENABLED"] == "false"
