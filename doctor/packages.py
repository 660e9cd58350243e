"""The packages: which extras are there, whether what is there fits together and runs on this processor."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from doctor.child import tried
from doctor.findings import Finding

PURPOSES = {"train": "diptych prepare, train, evaluate", "export": "diptych export", "serve": "diptych serve, loadtest"}
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
assert (index.knn_query(vectors, 1, num_threads=1)[0][:, 0] == numpy.arange(64)).all(), "it finds other vectors"
"""
RUNTIME_PROGRAM = "import onnxruntime as o; print(o.__version__, *o.get_available_providers())"
TORCH_PROGRAM = """
import torch
names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
print(torch.__version__, ", ".join(names), sep="|")
"""


def packages() -> Iterator[Finding]:
    """Every finding about what is installed."""
    yield Finding("Diptych", "ok", version("diptych"))
    yield base()
    for extra, purpose in PURPOSES.items():
        yield extra_of(extra, purpose)
    yield stores_behind_urls()
    yield index()
    yield runtime()
    if installed("torch"):
        yield torch()


def base() -> Finding:
    """Whether what every command needs is there, in the versions it needs."""
    if lacking := _lacking("", absent=True):
        advice = "Install again: pip install --force-reinstall diptych"
        return Finding("base packages", "problem", ", ".join(lacking), f"{advice}.")
    return Finding("base packages", "ok", "complete")


def extra_of(extra: str, purpose: str) -> Finding:
    """An extra that is missing is a note; one with a package of a wrong version is a problem."""
    topic, install = f"for {extra}", f"pip install 'diptych[{extra}]'"
    if wrong := _lacking(extra, absent=False):
        return Finding(topic, "problem", ", ".join(wrong), f"Install what fits: {install}.")
    if missing := _lacking(extra, absent=True):
        return Finding(topic, "note", f"not installed: {', '.join(missing)}", f"For {purpose}: {install}.")
    return Finding(topic, "ok", "complete")


def stores_behind_urls() -> Finding:
    """Which kinds of URL a store may lie behind."""
    known = [scheme for extra, scheme in DRIVERS.items() if not _lacking(extra, absent=True)]
    return Finding("stores behind URLs", "ok", ", ".join(known) or "none (extras s3, gcs, azure)")


def index() -> Finding:
    """Whether hnswlib runs: compiled for another machine's processor, it ends the process that calls it."""
    if failure := tried(INDEX_PROGRAM).failure:
        advice = "Compile it here: pip install --force-reinstall --no-cache-dir --no-binary hnswlib hnswlib"
        return Finding("hnswlib", "problem", failure, f"{advice}; for images, with HNSWLIB_NO_NATIVE=1.")
    return Finding("hnswlib", "ok", f"{version('hnswlib')}, runs on this processor")


def runtime(devices: Path = Path("/dev")) -> Finding:
    """ONNX Runtime: one of its two builds, and what it can run on."""
    topic, found = "ONNX Runtime", [name for name in BUILDS if installed(name)]
    if len(found) > 1:
        advice = "Remove both: pip uninstall -y onnxruntime onnxruntime-gpu. Then install diptych[cpu] or diptych[gpu]."
        return Finding(topic, "problem", f"{' and '.join(found)} are both installed", advice)
    if not found:
        advice = "Searching, exporting and serving need it: pip install 'diptych[cpu]', or 'diptych[gpu]'."
        return Finding(topic, "note", "not installed", advice)
    said, failure = tried(RUNTIME_PROGRAM)
    if failure:
        return Finding(topic, "problem", failure, f"Install it again: pip install --force-reinstall {found[0]}.")
    release, *providers = said.split()
    runs_on = [one.removesuffix("ExecutionProvider") for one in providers if not one.startswith("Azure")]
    value = f"{release}, {', '.join(runs_on)}"
    if found[0] == BUILDS[1] and CUDA not in providers:
        return Finding(topic, "problem", f"{value}, no CUDA", "Install 'diptych[cpu]' instead, or CUDA's libraries.")
    if found[0] == BUILDS[0] and (devices / "nvidia0").exists():
        return Finding(topic, "note", value, "There is a GPU here; onnxruntime-gpu (extra gpu) would use it.")
    return Finding(topic, "ok", value)


def torch(devices: Path = Path("/dev")) -> Finding:
    """PyTorch, and the GPUs it sees."""
    said, failure = tried(TORCH_PROGRAM)
    if failure:
        return Finding("PyTorch", "problem", failure, "Install it again: pip install --force-reinstall torch.")
    release, _, names = said.partition("|")
    if names:
        return Finding("PyTorch", "ok", f"{release}, {names}")
    if (devices / "nvidia0").exists():
        advice = "There is a GPU here, and PyTorch does not see it: install a build for your CUDA, or a newer driver."
        return Finding("PyTorch", "note", f"{release}, no GPU", advice)
    return Finding("PyTorch", "ok", f"{release}, no GPU: trains on the processor")


def installed(name: str) -> bool:
    """Whether a distribution of this name is installed."""
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _lacking(extra: str, *, absent: bool) -> list[str]:
    """What an extra (none: the base) needs and is of a wrong version; with `absent`, what is not there too."""
    found: list[str] = []
    for written in requires("diptych") or []:
        need = Requirement(written)
        if need.marker is None if extra else need.marker is not None:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        if not installed(need.name):
            found += [need.name] if absent else []
        elif not need.specifier.contains(version(need.name), prereleases=True):
            found.append(f"{need.name} {version(need.name)}, where {need.specifier} is needed")
    return found
