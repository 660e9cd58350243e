"""A folder of bundles and the name of the active one. Every change is a rename, so readers never see a partial one.

store/CURRENT, HISTORY  the active bundle and the earlier ones, see retrieval/store/history
store/PAUSED.json       ids of labels to leave out of all answers, see retrieval/store/paused_labels
store/bundles/<name>/   the bundles
store/.incoming/        files being written or removed; the next change removes what dead processes left there
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from retrieval.bundle.manifest import MANIFEST, NAME, UNLISTED, Manifest, read_manifest, read_signed_manifest
from retrieval.bundle.read_lock import read_lock
from retrieval.bundle.signatures import SIGNATURE, Signature, public_key, signed
from retrieval.bundle.verified_files import verify_bundle, verify_signed
from retrieval.errors import BadInput, BundleError
from retrieval.store.folder import (
    STAGING,
    bundle_names,
    created_at,
    replace_file,
    stage,
    store_lock,
    subfolder,
    unstage,
    write_errors,
)
from retrieval.store.history import (
    CURRENT,
    HISTORY,
    NAMES_IN_HISTORY,
    check_name,
    places_of,
    previous_in,
    read_active,
    read_history,
)
from retrieval.store.paused_labels import LIMIT as PAUSED_LIMIT
from retrieval.store.serials import Serials
from retrieval.system.atomic_files import move_folder, sync_files
from retrieval.system.file_locks import is_locked
from retrieval.system.paths import require_utf8
from retrieval.system.safe_open import BUNDLES, copy_file, folder_open, is_folder, read_small
from retrieval.system.urls import as_url

# Opens the bundle in a folder and raises BundleError if it does not work; one of the keys, if any, must have signed it.
Verify = Callable[[Path, Sequence[str]], object]
# Makes a bundle's index on a server the active one; the last argument: the caller has verified the bundle's answers.
SwitchIndex = Callable[[Path, Sequence[str], bool], object]


class Store:
    """Publish, activate, roll back and prune bundles. All methods raise BundleError with the cause and the fix.

    `retrieval.open.open_store` makes a store that verifies bundles in a child process.
    """

    def __init__(
        self,
        path: Path | str,
        verify: Verify,
        *,
        trusted: Sequence[str] = (),
        identity: str | None = None,
        switch_index: SwitchIndex | None = None,
    ) -> None:
        """Use the store in the folder `path`, which need not exist.

        `verify` is called before a bundle is published or activated. With `trusted` keys, one of them must have signed
        every bundle that is read, activated or rolled back to. Publishing needs no signature, since bundles are signed
        inside the store. `switch_index` is called before a bundle becomes active.
        `identity` names the store in the records of serial numbers; default: its path.
        Raises BadInput for a URL.
        """
        if (url := as_url(path)) is not None:
            raise BadInput(
                f"{url} is a URL, and only a store in a folder can be changed. Fetch its bundles into a folder with "
                "`diptych bundles pull`."
            )
        self.path = Path(path)
        self.trusted = tuple(trusted)
        self.identity = identity or os.path.abspath(path)
        self._verify, self._switch_index = verify, switch_index
        self._serials = Serials(self.identity)

    def bundles(self) -> list[str]:
        """Return the names of the published bundles, oldest first by the dates in their manifests, undated ones first.

        Manifests are not validated, since a bundle may be of a newer release.
        """
        dates = self._dates()
        beginning = datetime.min.replace(tzinfo=UTC)
        return sorted(dates, key=lambda name: (dates[name] or beginning, name))

    def undated(self) -> list[str]:
        """Return the names of bundles without a date in their manifests; `prune` keeps them."""
        return sorted(name for name, date in self._dates().items() if date is None)

    def has(self, name: str) -> bool:
        """Return whether a bundle of this name is published."""
        return NAME.fullmatch(name) is not None and self._is_published(name)

    def bundle_path(self, name: str) -> Path:
        """Return the folder of a published bundle."""
        check_name(name)
        if not self._is_published(name):
            for path in (self.path / BUNDLES, self.path / BUNDLES / name):
                if path.is_symlink():
                    raise BundleError(f"{path} is a symbolic link. Replace it by a folder.")
            names = ", ".join(self.bundles()) or "none yet"
            raise BundleError(f"{self.path} has no bundle {name!r}. It has: {names}.")
        return self.path / BUNDLES / name

    def active(self) -> str | None:
        """Return the name of the active bundle; None before the first activation."""
        return read_active(self.path)

    def previous(self) -> str | None:
        """Return the name of the previously active bundle; None if there is none."""
        active = self.active()
        return previous_in([name for name in read_history(self.path) if name == active or self.has(name)], active)

    def manifest(self, name: str) -> Manifest:
        """Read a bundle's manifest; its files are not compared with it."""
        return read_manifest(self.bundle_path(name), self.trusted)

    def verify(self, name: str) -> Manifest:
        """Compare every file of a bundle with its manifest."""
        return verify_bundle(self.bundle_path(name), self.trusted)

    def sign(self, name: str, signing: str, serial: int | None = None) -> int:
        """Verify a bundle, sign its manifest with the key `signing`, and return its serial number.

        Default for `serial`: the time in seconds, or one more than the highest serial number of this key in the store.
        Raises BadInput for an invalid key or number.
        """
        written = verify_signed(self.bundle_path(name)).written
        number = self._next_serial(public_key(signing)) if serial is None else serial
        self.attach_signature(name, signed(written, signing, number))
        return number

    def attach_signature(self, name: str, text: str) -> None:
        """Write a signature into a bundle's folder, replacing an earlier one."""
        folder = self.bundle_path(name)
        with (
            store_lock(self.path) as root,
            folder_open(folder.parent, root) as bundles,
            folder_open(folder, bundles) as descriptor,
        ):
            replace_file(self.path, root, descriptor, SIGNATURE, text.encode())

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Yield a new empty folder on the store's file system; remove it at the end unless it was published.

        Raises BundleError, and BadInput for a path that is not UTF-8.
        """
        require_utf8(self.path)
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with store_lock(self.path) as root:
            folder, lock = stage(self.path, root)
        try:
            yield folder
        finally:
            unstage(self.path, folder, lock)

    def check_free(self, name: str) -> None:
        """Raise BundleError unless `name` is valid and not taken."""
        check_name(name)
        if os.path.lexists(self.path / BUNDLES / name):
            raise BundleError(f"{self.path} already has a bundle {name!r}. Choose another name.")

    def publish(self, folder: Path, name: str) -> Path:
        """Verify a finished bundle and move it into the store under `name`; return its folder. Does not activate it."""
        self.check_free(name)
        folder = folder.parent.resolve() / folder.name if is_folder(folder) else folder.resolve()
        with write_errors(self.path), ExitStack() as stack:
            self.path.mkdir(parents=True, exist_ok=True)
            root = stack.enter_context(folder_open(self.path, follow=True))
            bundles = stack.enter_context(subfolder(self.path / BUNDLES, root))
            if folder.is_dir() and not _is_on_file_system(folder, bundles):
                return self.publish_copy(folder, name)
            self._verify(folder, ())
            with folder_open(folder) as descriptor:
                sync_files(descriptor)
            with store_lock(self.path):
                self.check_free(name)  # another process may have taken the name
                move_folder(folder, bundles, name)
        return self.path / BUNDLES / name

    def publish_copy(self, folder: Path, name: str) -> Path:
        """Publish a copy of a finished bundle, such as one on another file system."""
        manifest = verify_bundle(folder)  # so only files of the bundle are copied
        with self.incoming() as copy:
            with write_errors(self.path):
                for file in manifest.files.keys() | UNLISTED:
                    if os.path.lexists(folder / file):
                        copy_file(folder / file, copy / file)
            return self.publish(copy, name)

    def activate(self, name: str, *, verified: bool = False) -> None:
        """Verify a bundle and make it active. Refuses a signed one with a lower serial number than was active here.

        `verified`: the caller has verified the bundle; do not open it again.
        """
        folder = self.bundle_path(name)
        with read_lock(folder):
            signature = self._signature(name)
            self._serials.check(name, signature)
            if not verified:
                self._verify(folder, self.trusted)
            if self._switch_index is not None:
                self._switch_index(folder, self.trusted, verified)
            with store_lock(self.path) as root:
                self.bundle_path(name)  # raises if prune removed it before it was locked
                if name != self.active():
                    # HISTORY first: after a crash between the two writes, it still names the predecessor of CURRENT.
                    names = [*read_history(self.path), name][-NAMES_IN_HISTORY:]
                    self._replace(root, HISTORY, "\n".join(names) + "\n")
                    self._replace(root, CURRENT, name + "\n")
            self._serials.record_active(signature)

    def check_serial(self, name: str) -> None:
        """Raise BundleError for a signed bundle with a lower serial number than was active here."""
        if self.trusted:
            self._serials.check(name, self._signature(name))

    def record_use(self, name: str, signature: Signature | None = None) -> None:
        """Record that the bundle in CURRENT is used here. Raises BundleError as `check_serial` does.

        `signature` is the one that was read when the bundle was opened; default: read it now.
        """
        if self.trusted:
            signature = signature or self._signature(name)
            self._serials.check(name, signature)
            self._serials.record_active(signature)

    def allow_older(self, name: str) -> None:
        """Record a rollback to a signed bundle, which allows its lower serial number."""
        self._serials.record_rollback(self._signature(name))

    def amend(self, name: str, change: Callable[[bytes | None], str]) -> None:
        """Replace a small file in the store's folder with the result of `change(content)`; None if it does not exist.

        One writer at a time; readers see the old or the new content.
        """
        with store_lock(self.path) as root:
            try:
                content = read_small(self.path / name, PAUSED_LIMIT, root)
            except FileNotFoundError:
                content = None
            self._replace(root, name, change(content))

    def rollback(self, verified: str | None = None) -> str:
        """Reactivate the previous bundle; return its name.

        Its files are compared with the manifest, unless its name is `verified`: the caller has it open.
        """
        with store_lock(self.path) as root:
            name, history = self.previous(), read_history(self.path)
            if name is None:
                raise BundleError(f"{self.path} has no earlier bundle to go back to. Activate one by name.")
            if name != verified:
                self.verify(name)
            if self._switch_index is not None:
                self._switch_index(self.bundle_path(name), self.trusted, True)
            self.allow_older(name)
            self._replace(root, CURRENT, name + "\n")
            self._replace(root, HISTORY, "\n".join(history[: max(places_of(name, history[:-1])) + 1]) + "\n")
        return name

    def prune(self, keep: int) -> list[str]:
        """Remove all bundles except the newest `keep`, the active one, its predecessor and those that are open.

        Undated bundles stay, see `undated`. Returns the removed names.
        """
        if keep < 0:
            raise BundleError(f"prune cannot keep {keep} bundles. Keep 0 or more.")
        removed: list[str] = []
        with store_lock(self.path) as root:
            undated = set(self.undated())
            names = [name for name in self.bundles() if name not in undated]
            protected = {*names[max(len(names) - keep, 0) :], self.active(), self.previous()}
            for name in names:
                if name not in protected and self._remove(root, name):
                    removed.append(name)
        return removed

    def _remove(self, root: int, name: str) -> bool:
        """Remove a bundle unless a reader has it open. Returns whether it was removed."""
        with folder_open(self.path / BUNDLES, root) as bundles:
            path = self.path / BUNDLES / name
            with folder_open(path, bundles) as descriptor:
                if is_locked(path / MANIFEST, descriptor):
                    return False
            trash, lock = stage(self.path, root)
            try:
                with folder_open(self.path / STAGING, root) as staging, folder_open(trash.parent, staging) as target:
                    # not flushed: after a crash, the bundle is in the store or in STAGING, and both are valid
                    os.rename(name, name, src_dir_fd=bundles, dst_dir_fd=target)
            finally:
                unstage(self.path, trash, lock)
        return True

    def _signature(self, name: str) -> Signature | None:
        return read_signed_manifest(self.bundle_path(name), self.trusted).signature if self.trusted else None

    def _next_serial(self, key: str) -> int:
        """Return the time in seconds, or one more than the highest serial number that the key has signed here."""
        numbers = [int(time.time())]
        for name in bundle_names(self.path):
            try:
                signature = read_signed_manifest(self.path / BUNDLES / name, [key]).signature
            except BundleError:
                continue
            numbers.append(signature.serial + 1 if signature else 0)
        return max(numbers)

    def _is_published(self, name: str) -> bool:
        return is_folder(self.path / BUNDLES) and is_folder(self.path / BUNDLES / name)

    def _dates(self) -> dict[str, datetime | None]:
        """Return the date in the manifest of each bundle; None if it has none."""
        names = [name for name in bundle_names(self.path) if NAME.fullmatch(name)]
        return {name: created_at(self.path / BUNDLES / name) for name in names}

    def _replace(self, root: int, name: str, content: str) -> None:
        replace_file(self.path, root, root, name, content.encode())


def _is_on_file_system(path: Path, descriptor: int) -> bool:
    return path.stat().st_dev == os.fstat(descriptor).st_dev
