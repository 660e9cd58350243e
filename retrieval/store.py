"""A folder of bundles and the name of the active one; every change is a rename, so a reader never sees half of one.

store/CURRENT           the active bundle's name
store/HISTORY           names in the order they were activated, for rolling back
store/bundles/<name>/   the bundles
store/.incoming/        what is being written or removed
"""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrieval.errors import BundleError
from retrieval.manifest import MANIFEST, NAME, Manifest, verify_bundle
from retrieval.signatures import SIGNATURE, signed

REMEMBERED = 50


class Store:
    """Publish, activate, roll back and prune bundles. All methods raise BundleError with the cause and the way out."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

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

    def verify(self, name: str) -> Manifest:
        """Compare every file of a bundle with its manifest, byte for byte."""
        return verify_bundle(self.bundle_path(name))

    def sign(self, name: str, signing: str) -> None:
        """Verify a bundle, then sign its manifest with the key `signing`. Raises BadInput for what is no key."""
        self.verify(name)
        folder = self.bundle_path(name)
        text = signed((folder / MANIFEST).read_bytes(), signing)
        with self._lock():
            _replace(folder / SIGNATURE, text, self.path)  # a bundle's folder holds nothing that is not listed

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """A new empty folder on the store's own file system; removed at the end unless it was published."""
        folder = self.path / ".incoming" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check_free(self, name: str) -> None:
        """Raise BundleError unless `name` can be given to a new bundle."""
        _check_name(name)
        if (self.path / "bundles" / name).exists():
            raise BundleError(f"{self.path} already has a bundle {name!r}. Choose another name.")

    def publish(self, folder: Path, name: str) -> Path:
        """Verify a finished bundle and move it into the store under `name`; returns its place. Does not activate it."""
        self.check_free(name)
        verify_bundle(folder)
        target = self.path / "bundles" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _same_file_system(folder, target.parent):
            with self.incoming() as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
                return self.publish(copy, name)
        for item in sorted(folder.iterdir()):
            _sync(item)
        _sync(folder)
        with self._lock():
            try:
                # A bundle's folder is never empty, so the rename cannot replace one that is already there.
                folder.rename(target)
            except OSError as error:
                self.check_free(name)  # another publisher may have taken the name meanwhile
                raise BundleError(f"{target} cannot be made ({error}). Check rights and free space.") from error
            _sync(target.parent)
        return target

    def activate(self, name: str) -> None:
        """Verify a bundle, then make it the active one."""
        self.verify(name)
        with self._lock():
            if name == self.active():
                return
            # HISTORY first: after a crash between the two, CURRENT is still found in it with its true predecessor.
            self._replace("HISTORY", "\n".join([*self._history(), name][-REMEMBERED:]))
            self._replace("CURRENT", name)

    def rollback(self) -> str:
        """Make the previously active bundle active again; returns its name."""
        with self._lock():
            name, history = self.previous(), self._history()
            if name is None:
                raise BundleError(f"{self.path} has no earlier bundle to go back to. Activate one by name.")
            self.verify(name)
            self._replace("CURRENT", name)
            self._replace("HISTORY", "\n".join(history[: max(_places(history[:-1], name)) + 1]))
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
                with self.incoming() as trash:
                    folder.rename(trash / name)
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

    def _replace(self, name: str, content: str) -> None:
        _replace(self.path / name, content + "\n", self.path)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One writer at a time, across processes; the system releases it if the holder dies."""
        try:
            with (self.path / ".lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise BundleError(
                f"{self.path} cannot be changed ({error}). Check its path, rights and free space."
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
    try:
        with (folder / MANIFEST).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _replace(path: Path, content: str, aside_in: Path) -> None:
    """Write a file whole or not at all; it is made in `aside_in`, on the same file system."""
    aside = aside_in / f".{path.name}.{uuid.uuid4().hex}"
    aside.write_text(content, encoding="utf-8")
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


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
