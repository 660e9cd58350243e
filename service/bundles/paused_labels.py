"""Read and change the list of labels that must not be shown, without a new training.

The list is stored beside the bundles, at the URL if there is one. It survives a restart and an empty cache, and applies
to every bundle, every replica and every way to query, see retrieval/store/paused_labels.
"""

from collections.abc import Iterable

from retrieval.store.paused_labels import parse_paused, read_paused, stamp_of, write_paused
from service.bundles.store_access import Source
from service.errors import Refusal


class Paused:
    """The ids of paused labels in a store. Its methods may block; call them in a thread."""

    def __init__(self, source: Source, most: int) -> None:
        self.ids: tuple[str, ...] = ()
        self._source = source
        self._most = most
        self._read_at: tuple[int, ...] | None = None  # stat values of the file that was read

    def read(self) -> bool:
        """Read the list if the file changed; return whether the ids changed. Raises BundleError."""
        self._source.refresh_paused()
        store = self._source.store.path
        stamp = stamp_of(store)
        if stamp == self._read_at:
            return False
        before, self.ids = self.ids, read_paused(store, self._most)
        self._read_at = stamp
        return self.ids != before

    def change(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Add ids to the list in the store and remove others. Raises BundleError, and Refusal 422 when it is full."""

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
