"""Record the highest active serial number per signing key, so that no older signed bundle is activated again.

The record is in the cache folder and not in the store, since processes that can write to the store must not change it.
If the cache folder cannot be written, the record lasts as long as the process. The threat model is in
docs/decisions/0033.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from retrieval.bundle.signatures import Signature
from retrieval.errors import BundleError
from retrieval.store.cache_folder import CACHE, cache_folder
from retrieval.system.atomic_files import write_text
from retrieval.system.file_locks import exclusive_lock
from retrieval.system.safe_open import read_small

LOG = logging.getLogger("diptych")
LIMIT = 1 << 16  # bytes of a record, which holds two numbers per key


class OlderSerial(BundleError):
    """A signed bundle is older than one that was active here."""


class SerialRecord(BaseModel):
    """The highest serial number per key, and the target of the last rollback per key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    highest: dict[str, int] = {}
    rolled_back_to: dict[str, int] = {}


# Records of this process by store. They include what could not be written, or was in a file that was removed.
process_records: dict[str, SerialRecord] = {}


class Serials:
    """The serial numbers of one store. All methods raise BundleError if the record is damaged."""

    def __init__(self, store: str, records: dict[str, SerialRecord] = process_records) -> None:
        """Use the record of the store that the path or URL `store` identifies.

        `records` are those of this process.
        """
        self._store, self._records = store, records
        self._name = hashlib.sha256(store.encode("utf-8", "surrogateescape")).hexdigest()[:32]

    @property
    def path(self) -> Path:
        """Return the path of the record."""
        return cache_folder() / "serials" / f"{self._name}.json"

    def check(self, bundle: str, signature: Signature | None) -> None:
        """Raise OlderSerial if a bundle with a higher serial number of the same key was active here.

        The target of the last rollback is allowed. Without a signature nothing is checked.
        """
        if signature is None:
            return
        record = self._read()
        highest = record.highest.get(signature.key, 0)
        if signature.serial < highest and record.rolled_back_to.get(signature.key) != signature.serial:
            raise OlderSerial(
                f"bundle {bundle} has the serial number {signature.serial}, and {highest} was active here before. "
                "Go back to it with a rollback, or sign it again, which gives it a new number."
            )

    def record_active(self, signature: Signature | None) -> None:
        """Record the serial number of a bundle that became active."""
        if signature is None:
            return
        key, serial = signature

        def change(record: SerialRecord) -> SerialRecord:
            if serial < record.highest.get(key, 0):
                return record  # the target of a rollback
            allowed = {other: number for other, number in record.rolled_back_to.items() if other != key}
            return SerialRecord(highest=record.highest | {key: serial}, rolled_back_to=allowed)

        self._change(change)

    def record_rollback(self, signature: Signature | None) -> None:
        """Allow the target of a rollback, and no other older bundle, until a newer one becomes active."""
        if signature is None:
            return
        key, serial = signature
        self._change(
            lambda record: SerialRecord(
                highest=record.highest | {key: max(serial, record.highest.get(key, 0))},
                rolled_back_to=record.rolled_back_to | {key: serial},
            )
        )

    def _read(self) -> SerialRecord:
        """Merge the file with the record of this process."""
        in_process = self._records.get(self._store, SerialRecord())
        try:
            in_file = SerialRecord.model_validate_json(read_small(self.path, LIMIT))
        except (FileNotFoundError, NotADirectoryError):
            return in_process
        except (OSError, ValidationError) as error:
            if isinstance(error, PermissionError) and not os.access(self.path.parent, os.X_OK):
                return in_process  # another user's folder, which has no record of this user
            raise BundleError(
                f"{self.path}, the record of serial numbers, cannot be read. Remove it to forget which bundles were "
                "active."
            ) from error
        highest = {
            key: max(in_file.highest.get(key, 0), in_process.highest.get(key, 0))
            for key in in_file.highest.keys() | in_process.highest.keys()
        }
        # A rollback ends when a newer bundle becomes active, which the other record may contain.
        allowed = {
            key: serial
            for record in (in_process, in_file)
            for key, serial in record.rolled_back_to.items()
            if record.highest.get(key) == highest[key]
        }
        return SerialRecord(highest=highest, rolled_back_to=allowed)

    def _change(self, change: Callable[[SerialRecord], SerialRecord]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive_lock(self.path.with_suffix(".lock")):
                before = self._read()
                after = change(before)
                if after != before:
                    self._write(after)
        except OSError as error:
            after = change(self._read())
            if self._store not in self._records:
                LOG.warning(
                    "the serial numbers of %s are remembered only by this process: %s cannot be written (%s); set %s",
                    self._store, error.filename or "the cache", error.strerror or error, CACHE,
                )  # fmt: skip
        self._records[self._store] = after

    def _write(self, record: SerialRecord) -> None:
        # Without fsync, a power failure could leave an empty record, which would block the store.
        write_text(self.path, json.dumps(record.model_dump()))
