"""Labels that must not be shown: a campaign that stops now, not at the next training.

The list lies in the store, so it outlives a restart, and holds for every bundle and every service on that store. Ids
that a bundle has not are kept: the next one may have them.
"""

from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from retrieval.errors import BundleError
from service.errors import Refusal
from service.source import Source

FILE = "PAUSED.json"


class _List(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    paused: list[str]


class Paused:
    """The ids of paused labels, as a store keeps them. Reading and changing take a look at the disk: use a thread."""

    def __init__(self, source: Source, most: int) -> None:
        self.ids: tuple[str, ...] = ()
        self._source = source
        self._most = most
        self._read_at: tuple[int, ...] | None = None  # what the file system said of the file when it was read

    def read(self) -> bool:
        """Take over what the file says; returns whether that differs from before. Raises BundleError."""
        path = self._source.store.path / FILE
        stamp = _stamp(path)
        if stamp == self._read_at:
            return False
        before, self.ids = self.ids, _ids(path.read_text(encoding="utf-8") if stamp else None, path)
        self._read_at = stamp
        return self.ids != before

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Add ids to the list in the store, and remove others. Raises BundleError, and Refusal 422 when it is full."""

        store = self._source.store

        def changed(content: str | None) -> str:
            ids = dict.fromkeys([*_ids(content, store.path / FILE), *add])
            for one in remove:
                ids.pop(one, None)
            if len(ids) > self._most:
                message = f"{len(ids)} labels would be paused; the most is {self._most}. Export a bundle without them."
                raise Refusal(422, "too_many_paused", message)
            return to_json({"paused": list(ids)}, indent=1).decode() + "\n"

        store.amend(FILE, changed)
        self.read()


def _ids(content: str | None, path: Path) -> tuple[str, ...]:
    try:
        return tuple(_List.model_validate_json(content).paused) if content is not None else ()
    except ValidationError as error:
        raise BundleError(
            f'{path} is not a list of paused labels. Write it as {{"paused": ["id", …]}}, or remove it.'
        ) from error


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Changes with every change of the file; None where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
