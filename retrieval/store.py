"""A folder of bundles and the name of the active one; every change is a rename, so a reader never sees half of one.

store/CURRENT           the active bundle's name
store/HISTORY           names in the order they were activated, for rolling back
store/PAUSED.json       ids of labels that a service leaves out, written by service/pausing
store/bundles/<name>/   the bundles
store/.incoming/        what is being written or removed; what a process that died left there goes with the next change
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrieval.errors import BadInput, BundleError
from retrieval.manifest import MANIFEST, NAME, Manifest, read_manifest, verify_bundle
from retrieval.probe import prove_aside
from retrieval.signatures import SIGNATURE, signed
from retrieval.urls import as_url

REMEMBERED = 50
ASIDE = ".incoming"


class Store:
    """Publish, activate, roll back and prune bundles. All methods raise BundleError with the cause and the way out.

    `prove` opens a bundle before it is published or activated: by default in a process of its own, see retrieval/probe.
    """

    def __init__(self, path: Path | str, prove: Callable[[Path], object] = prove_aside) -> None:
        if (url := as_url(path)) is not None:
            raise BadInput(f"{url} can be read, not changed: `diptych bundles pull` brings its bundles into a folder.")
        self.path = Path(path)
        self._prove = prove

    def bundles(self) -> list[str]:
        """Names of the published bundles, oldest first. They are not opened: one may be of a newer release."""
        folder = self.path / "bundles"
        if not folder.is_dir():
            return []
        found = [item for item in folder.iterdir() if item.is_dir() and NAME.fullmatch(item.name)]
        return [item.name for item in sorted(found, key=lambda item: (item.stat().st_mtime_ns, item.name))]

    def bundle_path(self, name: str) -> Path:
        """Folder of a published bundle."""
        _check_name(name)
        folder = self.path / "bundles" / name
        if not folder.is_dir():
            known = ", ".join(self.bundles()) or "none yet"
            raise BundleError(f"{self.path} has no bundle {name!r}. It has: {known}.")
        return folder

    def active(self) -> str | None:
        """Name of the active bundle, None before the first activation."""
        try:
            name = (self.path / "CURRENT").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.path / 'CURRENT'} cannot be read ({error}).") from error
        _check_name(name)
        return name

    def previous(self) -> str | None:
        """Name of the bundle that was active before the present one, None where there is none."""
        earlier = [name for name in self._history()[:-1] if (self.path / "bundles" / name).is_dir()]
        return earlier[-1] if earlier else None

    def manifest(self, name: str) -> Manifest:
        """A bundle's manifest; its files are not compared with it."""
        return read_manifest(self.bundle_path(name))

    def verify(self, name: str) -> Manifest:
        """Compare every file of a bundle with its manifest, byte for byte."""
        return verify_bundle(self.bundle_path(name))

    def sign(self, name: str, signing: str) -> None:
        """Verify a bundle, then sign its manifest with the key `signing`. Raises BadInput for what is no key."""
        self.verify(name)
        self.attach_signature(name, signed((self.bundle_path(name) / MANIFEST).read_bytes(), signing))

    def attach_signature(self, name: str, text: str) -> None:
        """Put a signature into a bundle's folder, in the place of an earlier one."""
        with self._lock():
            self._replace(self.bundle_path(name) / SIGNATURE, text)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new empty folder on the store's own file system; removed at the end unless it was published."""
        with self._changing():
            self.path.mkdir(parents=True, exist_ok=True)
        with self._lock():
            folder, held = self._new_folder()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(held)

    def check_free(self, name: str) -> None:
        """Raise BundleError unless `name` can be given to a new bundle."""
        _check_name(name)
        if (self.path / "bundles" / name).exists():
            raise BundleError(f"{self.path} already has a bundle {name!r}. Choose another name.")

    def publish(self, folder: Path, name: str) -> Path:
        """Prove a finished bundle and move it into the store under `name`; returns its place. Does not activate it."""
        self.check_free(name)
        target = self.path / "bundles" / name
        with self._changing():
            target.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir() and not _same_file_system(folder, target.parent):
            return self._publish_copy(folder, name)
        self._prove(folder)
        with self._changing():
            for item in [*folder.iterdir(), folder]:
                _sync(item)
        with self._lock():
            self.check_free(name)  # another publisher may have taken the name meanwhile
            folder.rename(target)
            _sync(target.parent)
        return target

    def _publish_copy(self, folder: Path, name: str) -> Path:
        verify_bundle(folder)  # so that nothing but a bundle's files is copied
        with self.incoming() as copy:
            with self._changing():
                for item in folder.iterdir():
                    shutil.copyfile(item, copy / item.name)
            return self.publish(copy, name)

    def activate(self, name: str) -> None:
        """Prove a bundle, then make it the active one."""
        folder = self.bundle_path(name)
        with lease(folder):
            self._prove(folder)
            with self._lock():
                self.bundle_path(name)  # raises where prune was faster than the lease
                if name == self.active():
                    return
                # HISTORY first: after a crash between the two, CURRENT is still found in it with its true predecessor.
                self._replace(self.path / "HISTORY", "\n".join([*self._history(), name][-REMEMBERED:]) + "\n")
                self._replace(self.path / "CURRENT", name + "\n")

    def amend(self, name: str, change: Callable[[str | None], str]) -> None:
        """Replace a small file beside CURRENT by what `change` makes of its content, None where there is none.

        One writer at a time; a reader finds it whole, before or after.
        """
        with self._lock():
            path = self.path / name
            self._replace(path, change(path.read_text(encoding="utf-8") if path.exists() else None))

    def rollback(self, proved: str | None = None) -> str:
        """Make the previously active bundle active again; returns its name.

        Its files are compared with the manifest, unless it is `proved`: one that the caller has open.
        """
        with self._lock():
            name, history = self.previous(), self._history()
            if name is None:
                raise BundleError(f"{self.path} has no earlier bundle to go back to. Activate one by name.")
            if name != proved:
                self.verify(name)
            self._replace(self.path / "CURRENT", name + "\n")
            self._replace(self.path / "HISTORY", "\n".join(history[: max(_places(history[:-1], name)) + 1]) + "\n")
        return name

    def prune(self, keep: int) -> list[str]:
        """Remove all but the newest `keep` bundles, the active one, its predecessor and what a reader holds open.

        Returns the removed names.
        """
        if keep < 0:
            raise BundleError(f"prune cannot keep {keep} bundles. Keep 0 or more.")
        with self._lock():
            names = self.bundles()
            kept = {*names[max(len(names) - keep, 0) :], self.active(), self.previous()}
            removed: list[str] = []
            for name in names:
                folder = self.path / "bundles" / name
                if name in kept or _in_use(folder):
                    continue
                trash, held = self._new_folder()
                folder.rename(trash / name)
                shutil.rmtree(trash)
                os.close(held)
                removed.append(name)
        return removed

    def _history(self) -> list[str]:
        """Activated names up to the active one; what an interrupted activation wrote after it does not count."""
        active = self.active()
        if active is None:
            return []
        path = self.path / "HISTORY"
        names = path.read_text(encoding="utf-8").split() if path.exists() else []
        places = _places(names, active)
        return names[: places[-1] + 1] if places else [active]

    def _new_folder(self) -> tuple[Path, int]:
        """A folder aside, and the handle that keeps it from being swept away while this process lives."""
        folder = self.path / ASIDE / uuid.uuid4().hex
        folder.mkdir(parents=True)
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_SH)
        return folder, held

    def _replace(self, path: Path, content: str) -> None:
        """Write a file whole or not at all; it is made aside, on the same file system."""
        aside = self.path / ASIDE / uuid.uuid4().hex
        aside.parent.mkdir(exist_ok=True)
        aside.write_text(content, encoding="utf-8")
        _sync(aside)
        aside.replace(path)
        _sync(path.parent)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, across processes; the system releases it if the holder dies."""
        with self._changing(), (self.path / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what commands that died left aside: files are written there under the lock alone, folders are held."""
        if (self.path / ASIDE).is_dir():
            for item in (self.path / ASIDE).iterdir():
                if not item.is_dir():
                    item.unlink()
                elif not _held(item):
                    shutil.rmtree(item)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BundleError(
                f"{self.path} cannot be changed ({error.strerror or error}). Check its path, rights and free space."
            ) from error


def lease(folder: Path) -> IO[bytes]:
    """A handle on a bundle's manifest that keeps `prune` away until it is closed, or its process has ended."""
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder} is not a bundle: it has no {MANIFEST}.")
    handle = (folder / MANIFEST).open("rb")
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


def _in_use(folder: Path) -> bool:
    """Whether some process holds a lease on a bundle; one without a manifest has no readers."""
    return (folder / MANIFEST).is_file() and _held(folder / MANIFEST)


def _held(path: Path) -> bool:
    """Whether a living process holds a lock on a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise BundleError(
            f"{name!r} is not a bundle name: up to 64 letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit."
        )


def _same_file_system(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _places(names: list[str], name: str) -> list[int]:
    return [place for place, one in enumerate(names) if one == name]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
