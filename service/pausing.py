"""Labels that must not be shown: a campaign that stops now, not at the next training.

The list lies in the store, at its URL where it has one, so it outlives a restart and an empty cache, and holds for
every bundle, every replica and every way to query, see retrieval/paused.
"""

from collections.abc import Iterable

from retrieval.paused import parse_paused, read_paused, stamp_of, write_paused
from service.errors import Refusal
from service.source import Source


class Paused:
    """The ids of paused labels, as a store keeps them. Reading and changing take a look at the store: use a thread."""

    def __init__(self, source: Source, most: int) -> None:
        self.ids: tuple[str, ...] = ()
        self._source = source
        self._most = most
        self._read_at: tuple[int, ...] | None = None  # what the file system said of the file when it was read

    def read(self) -> bool:
        """Take over what the file says; returns whether that differs from before. Raises BundleError."""
        self._source.refresh_paused()
        store = self._source.store.path
        stamp = stamp_of(store)
        if stamp == self._read_at:
            return False
        before, self.ids = self.ids, read_paused(store, self._most)
        self._read_at = stamp
        return self.ids != before

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Add ids to the list in the store, and remove others. Raises BundleError, and Refusal 422 when it is full."""

        def changed(content: bytes | None) -> str:
            ids = dict.fromkeys([*parse_paused(content, self._source.paused_place), *add])
            for one in remove:
                ids.pop(one, None)
            if len(ids) > self._most:
                message = f"{len(ids)} labels would be paused; the most is {self._most}. Export a bundle without them."
                raise Refusal(422, "too_many_paused", message)
            return write_paused(ids)

        self._source.amend_paused(changed)
        self.read()
