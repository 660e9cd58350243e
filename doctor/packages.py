"""Checks of installed packages: complete extras, versions, and whether compiled libraries run on this processor."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from doctor.child import run_python
from doctor.findings import Finding

PURPOSES = {
    "train": "diptych prepare, train, evaluate", "export": "diptych export", "serve": "diptych serve",
    "loadtest": "diptych loadtest",
}  # fmt: skip
DRIVERS = {"s3": "s3://", "gcs": "gs://", "azure": "az://"}
BUILDS = ("onnxruntime", "onnxruntime-gpu")
CUDA = "CUDAExecutionProvider"

INDEX_PROGRAM = """
import hnswlib, numpy
vectors = numpy.random.default_rng(0).normal(size=(64, 64)).astype(numpy.float32)
index = hnswlib.Index("l2", 64)
index.init_index(64)
index.set_ef(64)
index.add_items(vectors, num_threads=1)
assert (index.knn_query(vectors, 1, num_threads=1)[0][:, 0] == numpy.arange(64)).all(), "wrong search results"
"""
RUNTIME_PROGRAM = "import onnxruntime as o; print(o.__version__, *o.get_available_providers())"
TORCH_PROGRAM = """
import torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(torch.__version__, ", ".join(names), sep="|")
"""


def check_packages() -> Iterator[Finding]:
    """Check everything that is installed."""
    yield Finding("Diptych", "ok", version("diptych"))
    yield base()
    for extra, purpose in PURPOSES.items():
        yield check_extra(extra, purpose)
    yield stores_behind_urls()
    yield index()
    yield runtime()
    if installed("torch"):
        yield torch()


def base() -> Finding:
    """Check the packages that every command needs, and their versions."""
    if unmet := _unmet("", missing=True):
        advice = "Reinstall: pip install --force-reinstall diptych"
        return Finding("base packages", "problem", ", ".join(unmet), f"{advice}.")
    return Finding("base packages", "ok", "complete")


def check_extra(extra: str, purpose: str) -> Finding:
    """Check an extra: a missing package is a note, a wrong version is a problem."""
    topic, install = f"for {extra}", f"pip install 'diptych[{extra}]'"
    if wrong := _unmet(extra, missing=False):
        return Finding(topic, "problem", ", ".join(wrong), f"Install matching versions: {install}.")
    if missing := _unmet(extra, missing=True):
        return Finding(topic, "note", f"not installed: {', '.join(missing)}", f"For {purpose}: {install}.")
    return Finding(topic, "ok", "complete")


def stores_behind_urls() -> Finding:
    """List the kinds of URL that a store may have."""
    known = [scheme for extra, scheme in DRIVERS.items() if not _unmet(extra, missing=True)]
    return Finding("stores behind URLs", "ok", ", ".join(known) or "none (extras s3, gcs, azure)")


def index() -> Finding:
    """Check that hnswlib runs: compiled for another processor, it crashes the process that calls it."""
    if failure := run_python(INDEX_PROGRAM).failure:
        advice = "Compile it on this machine: pip install --force-reinstall --no-cache-dir --no-binary hnswlib hnswlib"
        return Finding("hnswlib", "problem", failure, f"{advice}. For images, set HNSWLIB_NO_NATIVE=1.")
    return Finding("hnswlib", "ok", f"{version('hnswlib')}, runs on this processor")


def runtime(devices: Path = Path("/dev")) -> Finding:
    """Check that exactly one of ONNX Runtime's two builds is installed, and list what it can run on."""
    topic, builds = "ONNX Runtime", [name for name in BUILDS if installed(name)]
    if len(builds) > 1:
        advice = "Remove both: pip uninstall -y onnxruntime onnxruntime-gpu. Then install diptych[cpu] or diptych[gpu]."
        return Finding(topic, "problem", f"{' and '.join(builds)} are both installed", advice)
    if not builds:
        advice = "Search, export and serving need it: pip install 'diptych[cpu]', or 'diptych[gpu]'."
        return Finding(topic, "note", "not installed", advice)
    output, failure = run_python(RUNTIME_PROGRAM)
    if failure:
        return Finding(topic, "problem", failure, f"Reinstall it: pip install --force-reinstall {builds[0]}.")
    release, *providers = output.split()
    targets = [provider.removesuffix("ExecutionProvider") for provider in providers if not provider.startswith("Azure")]
    value = f"{release}, {', '.join(targets)}"
    if builds[0] == BUILDS[1] and CUDA not in providers:
        return Finding(topic, "problem", f"{value}, no CUDA", "Install 'diptych[cpu]' instead, or CUDA's libraries.")
    if builds[0] == BUILDS[0] and (devices / "nvidia0").exists():
        return Finding(topic, "note", value, "This machine has a GPU; onnxruntime-gpu (extra gpu) would use it.")
    return Finding(topic, "ok", value)


def torch(devices: Path = Path("/dev")) -> Finding:
    """Check that PyTorch can be imported, and list its GPUs."""
    output, failure = run_python(TORCH_PROGRAM)
    if failure:
        return Finding("PyTorch", "problem", failure, "Reinstall it: pip install --force-reinstall torch.")
    release, _, names = output.partition("|")
    if names:
        return Finding("PyTorch", "ok", f"{release}, {names}")
    if (devices / "nvidia0").exists():
        advice = "PyTorch does not see this machine's GPU: install a build for your CUDA, or a newer driver."
        return Finding("PyTorch", "note", f"{release}, no GPU", advice)
    return Finding("PyTorch", "ok", f"{release}, no GPU, trains on the CPU")


def installed(name: str) -> bool:
    """Tell whether a distribution is installed."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _unmet(extra: str, *, missing: bool) -> list[str]:
    """List unmet requirements of an extra (empty: the base): wrong versions and, with `missing`, missing packages."""
    unmet: list[str] = []
    for line in requires("diptych") or []:
        need = Requirement(line)
        if need.marker is None if extra else need.marker is not None:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        if not installed(need.name):
            unmet += [need.name] if missing else []
        elif not need.specifier.contains(version(need.name), prereleases=True):
            unmet.append(f"{need.name} {version(need.name)}; {need.specifier} is needed")
    return unmet
