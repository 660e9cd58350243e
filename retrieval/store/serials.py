"""Remember the highest active serial number per signing key, so that no older signed bundle is activated again.

The note is in the cache folder and not in the store, since processes that can write to the store must not change it. If
the cache folder cannot be written, the note lasts as long as the process. docs/decisions/0033 has the threat model.
"""

import fcntl
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.bundle.signatures import Signature
from retrieval.errors import BundleError
from retrieval.store.cache_folder import CACHE, cache_folder
from retrieval.system.safe_open import open_file, read_small

LOG = logging.getLogger("diptych")
LIMIT = 1 << 16  # bytes of a note, which holds two numbers per key


class OlderSerial(BundleError):
    """A signed bundle is older than one that was active here."""


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    highest: dict[str, int] = {}
    rolled_back_to: dict[str, int] = {}


_process_notes: dict[str, _Note] = {}  # by place; keeps what could not be written, or was in a file that was removed


class Serials:
    """The serial numbers of one store. All methods raise BundleError if the note is damaged."""

    def __init__(self, place: str) -> None:
        """`place` is the path or URL that identifies the store."""
        self._place = place
        self._name = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """Return the path of the note."""
        return cache_folder() / "serials" / f"{self._name}.json"

    def check(self, bundle: str, signature: Signature | None) -> None:
        """Raise OlderSerial if a bundle with a higher serial number of the same key was active here.

        The target of the last rollback is allowed. Without a signature nothing is checked.
        """
        if signature is None:
            return
        note = self._read()
        highest = note.highest.get(signature.key, 0)
        if signature.serial < highest and note.rolled_back_to.get(signature.key) != signature.serial:
            raise OlderSerial(
                f"bundle {bundle} has the serial number {signature.serial}, and {highest} was active here before. "
                "Go back to it with a rollback, or sign it again, which gives it a new number."
            )

    def note_active(self, signature: Signature | None) -> None:
        """Record the serial number of a bundle that became active."""
        if signature is None:
            return
        key, serial = signature

        def change(note: _Note) -> _Note:
            if serial < note.highest.get(key, 0):
                return note  # the target of a rollback
            allowed = {one: number for one, number in note.rolled_back_to.items() if one != key}
            return _Note(highest=note.highest | {key: serial}, rolled_back_to=allowed)

        self._change(change)

    def note_rollback(self, signature: Signature | None) -> None:
        """Allow the target of a rollback, and no other older bundle, until a newer one becomes active."""
        if signature is None:
            return
        key, serial = signature
        self._change(
            lambda note: _Note(
                highest=note.highest | {key: max(serial, note.highest.get(key, 0))},
                rolled_back_to=note.rolled_back_to | {key: serial},
            )
        )

    def _read(self) -> _Note:
        noted = _process_notes.get(self._place, _Note())
        try:
            written = _Note.model_validate_json(read_small(self.path, LIMIT))
        except (FileNotFoundError, NotADirectoryError):
            return noted
        except (OSError, ValidationError) as error:
            if isinstance(error, PermissionError) and not os.access(self.path.parent, os.X_OK):
                return noted  # another user's folder, which has no note of this user
            raise BundleError(
                f"{self.path}, the note of serial numbers, cannot be read. Remove it to forget what was active."
            ) from error
        highest = {
            key: max(written.highest.get(key, 0), noted.highest.get(key, 0))
            for key in written.highest.keys() | noted.highest.keys()
        }
        # A rollback ends when a newer bundle becomes active, which the other note may have recorded.
        allowed = {
            key: serial
            for note in (noted, written)
            for key, serial in note.rolled_back_to.items()
            if note.highest.get(key) == highest[key]
        }
        return _Note(highest=highest, rolled_back_to=allowed)

    def _change(self, change: Callable[[_Note], _Note]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                before = self._read()
                after = change(before)
                if after != before:
                    self._write(after)
        except OSError as error:
            after = change(self._read())
            if self._place not in _process_notes:
                LOG.warning(
                    "the serial numbers of %s are remembered by this process alone: %s cannot be written (%s); set %s",
                    self._place, error.filename or "the cache", error.strerror or error, CACHE,
                )  # fmt: skip
        _process_notes[self._place] = after

    def _write(self, note: _Note) -> None:
        made = self.path.with_name(uuid.uuid4().hex)
        try:
            with made.open("x", encoding="utf-8") as file:
                file.write(json.dumps(note.model_dump()))
                file.flush()
                os.fsync(file.fileno())  # an empty note after a power failure would block the store
            os.replace(made, self.path)
        finally:
            made.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = open_file(self.path.with_suffix(".lock"), flags=os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
