"""Interrupted downloads: they are retried a limited number of times, resumed, and checked by hash."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import retrieval.store.download
from retrieval import open_bundle
from retrieval.bundle.manifest import INDEX, LABELS, Manifest
from retrieval.errors import BundleError, Unreachable
from retrieval.store.download import ATTEMPTS, DOWNLOAD_LOCK, PARTIAL
from retrieval.store.local import Store
from retrieval.store.pull import pull
from tests.support.web_store import Handler, WebStore, failing, web_store


@pytest.fixture
def web(there: Path) -> Iterator[WebStore]:
    with web_store(there) as served:
        served.ranges = True
        yield served


@pytest.fixture
def here(tmp_path: Path) -> Store:
    return Store(tmp_path / "here", lambda folder, trusted: None)


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Request small parts with short waits, so that small files behave like large ones."""
    monkeypatch.setattr("retrieval.store.remote.CHUNK", 4096)
    monkeypatch.setattr(retrieval.store.download, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(retrieval.store.download, "LONGEST_WAIT", 0.002)


PATH = f"/bundles/one/{INDEX}"


def entry(there: Path) -> tuple[int, str]:
    """Return the bytes and the hash of the index."""
    written = (there / "bundles" / "one" / "manifest.json").read_bytes()
    found = Manifest.model_validate_json(written).files[INDEX]
    return found.bytes, found.sha256


def breaking(times: int) -> object:
    """Return a handler that closes the connection within the second requested part, `times` times."""
    left = [times]

    def handle(handler: Handler) -> None:
        asked = handler.headers.get("Range", "bytes=0-")
        if left[0] and not asked.startswith("bytes=0-"):
            left[0] -= 1
            handler.serve_range(asked, 10)
        else:
            handler.serve_file()

    return handle


def test_a_download_that_breaks_off_goes_on_where_it_stopped(web: WebStore, here: Store) -> None:
    """If it fails, one lost packet costs a download of gigabytes, or the bundle."""
    web.handlers[PATH] = breaking(2)  # type: ignore[assignment]
    assert pull(web.url, here) == "one"
    here.verify("one")
    starts = [start for path, start in web.range_requests if path == PATH]
    assert starts.count(0) == 1
    assert not (here.path / PARTIAL).exists()


def test_a_later_run_goes_on_too(web: WebStore, here: Store, there: Path) -> None:
    """If it fails, a download that takes longer than the connection lasts never ends."""
    web.handlers[PATH] = breaking(1000)  # type: ignore[assignment]
    with pytest.raises(Unreachable, match=f"{web.url}{PATH} cannot be reached"):
        pull(web.url, here)
    size, sha256 = entry(there)
    kept = (here.path / PARTIAL / sha256).stat().st_size
    assert 0 < kept < size
    assert here.bundles() == []
    web.handlers.clear()
    web.range_requests.clear()
    assert pull(web.url, here) == "one"
    here.verify("one")
    assert min(start for path, start in web.range_requests if path == PATH) == kept
    assert not (here.path / PARTIAL).exists()


def test_attempts_have_an_end(web: WebStore, here: Store) -> None:
    """If it fails, a server that always breaks the connection keeps its client trying forever."""
    asked: list[str] = []

    def refuse(handler: Handler) -> None:
        asked.append(handler.path)
        failing(handler)

    web.handlers[PATH] = refuse
    with pytest.raises(Unreachable):
        pull(web.url, here)
    assert 1 <= len(asked) <= 2 * ATTEMPTS


def test_what_lies_there_from_before_must_fit(web: WebStore, here: Store, there: Path) -> None:
    """If it fails, a partial file with other content makes every later download fail."""
    _, sha256 = entry(there)
    (here.path / PARTIAL).mkdir(parents=True)
    (here.path / PARTIAL / sha256).write_bytes(b"another file" * 100)
    assert pull(web.url, here) == "one"
    here.verify("one")


def test_a_partial_file_that_is_too_long_starts_again_and_others_are_removed(
    web: WebStore, here: Store, there: Path
) -> None:
    """If it fails, parts of bundles that are no longer active fill the disk."""
    size, sha256 = entry(there)
    (here.path / PARTIAL / "folder").mkdir(parents=True)
    (here.path / PARTIAL / sha256).write_bytes(bytes(size + 1))
    (here.path / PARTIAL / ("0" * 64)).write_bytes(b"of another bundle")
    assert pull(web.url, here) == "one"
    here.verify("one")
    assert not (here.path / PARTIAL).exists()


def test_a_file_that_is_not_the_right_one_leaves_nothing(web: WebStore, here: Store, there: Path) -> None:
    """If it fails, a damaged partial file is resumed again and again."""
    path = there / "bundles" / "one" / LABELS
    right = path.read_bytes()
    path.write_bytes(right[::-1])
    with pytest.raises(BundleError, match="its SHA-256 differs"):
        pull(web.url, here)
    path.write_bytes(right)
    assert pull(web.url, here) == "one"
    here.verify("one")


def test_a_download_from_a_server_without_ranges_starts_again(web: WebStore, here: Store) -> None:
    """If it fails, a store behind a plain web server cannot be fetched after a connection broke."""
    web.ranges = False
    broken = []

    def once(handler: Handler) -> None:
        if broken:
            handler.serve_file()
            return
        broken.append(True)
        handler.begin(Path(handler.translate_path(handler.path)).stat().st_size).write(b"begun")
        handler.close_connection = True

    web.handlers[PATH] = once
    assert pull(web.url, here) == "one"
    here.verify("one")


@pytest.mark.parametrize("name", [PARTIAL, DOWNLOAD_LOCK])
def test_links_in_the_cache_are_not_followed(web: WebStore, here: Store, tmp_path: Path, name: str) -> None:
    """If it fails, a link in the cache redirects a download, or the removal of files."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    here.path.mkdir()
    (here.path / name).symlink_to(outside / "file" if name == DOWNLOAD_LOCK else outside)
    with pytest.raises(BundleError, match="is a symbolic link"):
        pull(web.url, here)
    assert (outside / "file").read_text() == "precious"
    assert os.listdir(outside) == ["file"]


def test_a_part_that_is_a_link_is_not_written_through(web: WebStore, here: Store, there: Path, tmp_path: Path) -> None:
    """If it fails, a link in the cache lets a download overwrite any file."""
    _, sha256 = entry(there)
    (tmp_path / "precious").write_text("precious")
    (here.path / PARTIAL).mkdir(parents=True)
    (here.path / PARTIAL / sha256).symlink_to(tmp_path / "precious")
    with pytest.raises(BundleError, match="is a symbolic link"):
        pull(web.url, here)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_fetched_bundle_answers(web: WebStore, tmp_path: Path) -> None:
    """If it fails, parallel downloads mix the order of parts."""
    with open_bundle(web.url, cache=tmp_path / "cache") as retriever:
        assert retriever.check_golden().passed
