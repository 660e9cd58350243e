"""Read a store, or one bundle, behind a URL: s3://, gs://, az:// and all others with an fsspec driver.

Content is not trusted: every read is limited in length. The drivers take credentials from the environment.
retrieval/store/pull fetches bundles into a local store.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retrieval.bundle.manifest import MANIFEST, MANIFEST_LIMIT, NAME, Manifest, read_manifest
from retrieval.bundle.signatures import LIMIT as SIGNATURE_LIMIT
from retrieval.bundle.signatures import SIGNATURE
from retrieval.errors import BadInput, BundleError
from retrieval.store.history import CURRENT, CURRENT_LIMIT, HISTORY, HISTORY_LIMIT
from retrieval.store.paused_labels import LIMIT as PAUSED_LIMIT
from retrieval.store.paused_labels import PAUSED
from retrieval.system.urls import as_url, file_system, refuse_password, short_error, unreachable

CHUNK = 16 << 20  # bytes per request


class Missing(BundleError):
    """The store has no such file."""


class NotSeekable(Exception):
    """A server cannot send a file from an offset."""


class Remote:
    """A store, or one bundle, behind a URL. All methods raise BundleError, and Unreachable if there is no answer.

    A bundle's folder is its path below the URL: "bundles/NAME/", or "" if the URL is that of the bundle.
    """

    def __init__(self, url: str, trusted: Sequence[str] = ()) -> None:
        """With `trusted` keys, `manifest` requires a signature by one of them."""
        self.url = checked_url(url)
        self._trusted = trusted
        self._files, self._root = file_system(self.url)
        self._files.invalidate_cache()  # cached listings would hide new bundles

    def active(self) -> str | None:
        """Return the name of the active bundle; None if there is no store, or none is active."""
        try:
            name = self.read(CURRENT, CURRENT_LIMIT).decode("utf-8", "replace").strip()
        except Missing:
            return None
        if not NAME.fullmatch(name):
            raise BundleError(
                f"{self.url}/{CURRENT} contains {name!r}, which is not a bundle name. Activate a bundle there."
            )
        return name

    def bundles(self) -> list[str]:
        """Return the names of the bundles in alphabetical order; object stores have no dates of folders."""
        try:
            with self._driver_errors("bundles"):
                paths = self._files.ls(f"{self._root}/bundles", detail=False)
        except Missing as missing:
            raise BundleError(f"{self.url} is not a store: it has no folder bundles. Check the URL.") from missing
        names = {path.rstrip("/").rpartition("/")[2] for path in paths}
        return sorted(name for name in names if NAME.fullmatch(name))

    def manifest(self, name: str) -> Manifest:
        """Read a bundle's manifest; no other file is read."""
        name, folder = self.find(name)
        with TemporaryDirectory() as copy, rewrite_paths(copy, self.url_of(folder)):
            Path(copy, MANIFEST).write_bytes(self.manifest_bytes(folder))
            if self._trusted and (signature := self.signature(folder)) is not None:
                Path(copy, SIGNATURE).write_bytes(signature)
            return read_manifest(Path(copy), self._trusted)

    def find(self, name: str | None) -> tuple[str, str]:
        """Return name and folder of a bundle: of `name`, or of the active one, or of the one at the URL."""
        if name is None and (name := self.active()) is None:
            name = self._root.rpartition("/")[2]
            if not NAME.fullmatch(name):
                raise BundleError(f"{self.url} has no active bundle, and {name!r} is not a bundle name. Check the URL.")
            return name, ""
        if not NAME.fullmatch(name):
            raise BundleError(f"{name!r} is not a bundle name. `diptych bundles list {self.url}` lists the bundles.")
        return name, f"bundles/{name}/"

    def url_of(self, path: str) -> str:
        """Return the URL of a bundle's folder or of a file, for messages."""
        return f"{self.url}/{path}".rstrip("/")

    def manifest_bytes(self, folder: str) -> bytes:
        """Read the bytes of a bundle's manifest.json."""
        try:
            return self.read(f"{folder}{MANIFEST}", MANIFEST_LIMIT)
        except Missing as missing:
            if not folder:
                raise BundleError(
                    f"{self.url} is neither a store with an active bundle (no {CURRENT}) nor a bundle (no {MANIFEST}). "
                    "Check the URL, or activate a bundle there."
                ) from missing
            names = ", ".join(self.bundles()) or "none yet"
            raise BundleError(f"{missing} The bundles of {self.url} are: {names}.") from missing

    def signature(self, folder: str) -> bytes | None:
        """Read the bytes of a bundle's manifest.sig; None if it has none."""
        try:
            return self.read(f"{folder}{SIGNATURE}", SIGNATURE_LIMIT)
        except Missing:
            return None

    def paused(self) -> bytes | None:
        """Read the bytes of the store's PAUSED.json; None if it does not exist."""
        try:
            return self.read(PAUSED, PAUSED_LIMIT)
        except Missing:
            return None

    def history(self) -> list[str]:
        """Return the names in the order they were activated at the URL; empty if there is no HISTORY."""
        try:
            return self.read(HISTORY, HISTORY_LIMIT).decode("utf-8", "replace").split()
        except Missing:
            return []

    def write(self, path: str, content: bytes) -> None:
        """Replace a small file of the store. Raises BundleError if the driver or the credentials cannot write."""
        try:
            self._files.pipe_file(f"{self._root}/{path}", content)
        except Exception as error:  # as in `_driver_errors`
            raise BundleError(
                f"{self.url_of(path)} cannot be written ({short_error(error)}). A change in the cache would apply to "
                "one replica only. Change it at the URL, or give the service permission to write."
            ) from error

    def read(self, path: str, limit: int) -> bytes:
        """Read a small file. Raises BundleError if it has more than `limit` bytes."""
        content = b"".join(self.chunks(path, limit))
        if len(content) > limit:
            raise BundleError(f"{self.url_of(path)} has more than {limit:,} bytes, the limit for this file.")
        return content

    def chunks(self, path: str, size: int, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` on; at most one byte beyond `size`, to show that the file is longer.

        Raises NotSeekable if the server cannot send from an offset.
        """
        left = size + 1 - start
        with (
            self._driver_errors(path),
            self._files.open(f"{self._root}/{path}", "rb", block_size=min(left, CHUNK)) as source,
        ):
            if start:
                seek(source, start)
            while left and (chunk := source.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk

    @contextmanager
    def _driver_errors(self, path: str) -> Iterator[None]:
        """Turn the errors of drivers into Missing, BundleError or Unreachable, and keep their text."""
        try:
            yield
        except NotSeekable:
            raise
        except FileNotFoundError as error:
            if (outage := _outage_behind(error)) is not None:
                raise unreachable(self.url_of(path), outage) from error
            raise Missing(f"{self.url_of(path)} does not exist.") from error
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise BundleError(
                f"{self.url_of(path)} cannot be read ({short_error(error)}). "
                "Check the URL, and the credentials in the environment."
            ) from error
        except Exception as error:
            raise unreachable(self.url_of(path), error) from error


@contextmanager
def rewrite_paths(folder: Path | str, url: str) -> Iterator[None]:
    """Replace the path of a temporary folder by a URL in the messages of BundleErrors."""
    try:
        yield
    except BundleError as error:
        message = str(error).replace(str(Path(folder).resolve()), url).replace(str(folder), url)
        raise type(error)(message) from error


def checked_url(url: str) -> str:
    """Return a normalized URL. Raises BadInput if it is not a URL, or contains a password."""
    whole = (as_url(url) or "").rstrip("/")
    refuse_password(whole)
    if as_url(whole) is None:
        raise BadInput(f"{url} is not the URL of a store, such as s3://bucket/store.")
    return whole


def seek(source: Any, start: int) -> None:
    """Move to an offset. Raises NotSeekable if the driver cannot; errors of the network pass, and callers retry."""
    try:
        source.seek(start)
    except (ValueError, NotImplementedError) as error:  # io.UnsupportedOperation is a ValueError
        raise NotSeekable from error


def _outage_behind(error: FileNotFoundError) -> BaseException | None:
    """Return the cause if the HTTP driver reports "not found" for a server that failed or did not answer."""
    cause = error.__cause__
    failed = getattr(cause, "status", 0) >= 500
    silent = type(cause).__module__.startswith("aiohttp") and not hasattr(cause, "status")
    return cause if failed or silent or isinstance(cause, TimeoutError) else None
