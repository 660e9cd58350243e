"""Write the files of exact versions and hashes: `make lock`, after a change of a dependency in pyproject.toml.

Versions that the files already name stay; a new dependency gets its newest version. `make lock UPGRADE=name` takes the
newest version of one package, `UPGRADE=all` of every package.

constraints.txt                   everything but CUDA
docker/constraints-torch-cuda.txt the CUDA libraries of PyPI's torch
docker/constraints-gpu.txt        onnxruntime-gpu and its CUDA libraries, in other versions than torch needs
.ci/requirements-build.txt        pip and the build tools, installed first in each environment
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ["export", "serve", "loadtest", "cpu", "dev"]
CUDA = re.compile(r"nvidia-|cuda-|triton==")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)
OPTIONS = [
    "--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate", "--no-header", "--quiet",
    "--no-config", "--default-index", "https://pypi.org/simple",
]  # fmt: skip

# SHA-256 of PyTorch's CPU wheels, which PyPI does not list: https://download.pytorch.org/whl/cpu/torch/
TORCH_CPU = {
    "2.13.0": {
        "cp311-manylinux_2_28_x86_64": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "cp311-manylinux_2_28_aarch64": "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
        "cp312-manylinux_2_28_x86_64": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "cp312-manylinux_2_28_aarch64": "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
        "cp313-manylinux_2_28_x86_64": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
        "cp313-manylinux_2_28_aarch64": "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
    }
}


def main() -> None:
    """Write all four files. Raises CalledProcessError where a version cannot be resolved."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--upgrade", default="", metavar="NAME", help="a package, or all")
    upgrade = options.parse_args().upgrade
    chosen = ["--upgrade"] if upgrade == "all" else ["--upgrade-package", upgrade] if upgrade else []
    everything, cuda = ROOT / "constraints.txt", ROOT / "docker/constraints-torch-cuda.txt"
    gpu, build = ROOT / "docker/constraints-gpu.txt", ROOT / ".ci/requirements-build.txt"

    extras = [word for name in EXTRAS for word in ("--extra", name)]
    sources = [str(ROOT / "pyproject.toml"), *extras, str(ROOT / ".ci/build.in")]
    locked = resolve(sources, [everything, cuda], chosen)
    write(everything, "One working set of exact versions with the hashes of their files; ranges are in pyproject.toml.",
          {name: entry for name, entry in locked.items() if not CUDA.match(entry)})  # fmt: skip
    write(cuda, "CUDA for the torch of PyPI; PyTorch's CPU wheels need none of it.",
          {name: entry for name, entry in locked.items() if CUDA.match(entry)})  # fmt: skip

    pinned = ["--constraint", str(everything)]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "gpu.in"
        wanted.write_text("onnxruntime-gpu[cuda,cudnn]\n")
        added = resolve([str(wanted), *pinned], [gpu], chosen)
    write(gpu, "What VARIANT=gpu adds to constraints.txt; torch's CUDA libraries have other versions.",
          {name: entry for name, entry in added.items() if name not in locked or CUDA.match(entry)})  # fmt: skip
    write(build, "The first thing that an environment installs; any pip can read it.",
          resolve([str(ROOT / ".ci/build.in"), *pinned], [build], chosen))  # fmt: skip


def resolve(sources: list[str], before: list[Path], chosen: list[str]) -> dict[str, str]:
    """Resolve for all platforms, preferring versions in the files `before`; returns entries by package."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "locked.txt"
        # without hashes: uv would keep those of a version that the file no longer names
        lines = [line for path in before if path.exists() for line in path.read_text().splitlines()]
        output.write_text("\n".join(line.removesuffix("\\").strip() for line in lines if PIN.match(line)) + "\n")
        subprocess.run([uv, "pip", "compile", *sources, *OPTIONS, *chosen, "--output-file", str(output)], check=True)
        text = output.read_text()
    entries = {PIN.match(one)[1]: one for one in re.split(r"\n(?=\S)", text.strip()) if PIN.match(one)}  # type: ignore[index]
    if "torch" in entries:
        entries["torch"] += torch_cpu_hashes(entries["torch"])
    return entries


def torch_cpu_hashes(entry: str) -> str:
    """Return hashes of the CPU wheels, to add to those of PyPI. Raises SystemExit if they are unknown."""
    version = PIN.match(entry)[2]  # type: ignore[index]
    if version not in TORCH_CPU:
        raise SystemExit(
            f"TORCH_CPU in {__file__} has no hashes for torch {version}. "
            "Add those that https://download.pytorch.org/whl/cpu/torch/ lists."
        )
    return "".join(f" \\\n    --hash=sha256:{digest}" for digest in TORCH_CPU[version].values())


def write(path: Path, about: str, entries: dict[str, str]) -> None:
    """Write one file, sorted by name."""
    lines = [
        f"# {about}",
        "# Written by `make lock`: to change a version, edit it here and run that.",
        *entries.values(),
    ]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path.relative_to(ROOT)}: {len(entries)} packages")


if __name__ == "__main__":
    main()
