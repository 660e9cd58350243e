"""Hostile, damaged, endless and unreachable stores behind a URL: one sentence each, and no files remain."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval import open_bundle
from retrieval.bundle.manifest import GOLDEN, INDEX, LABELS, MANIFEST, MANIFEST_LIMIT, QUERY_ENCODER, TOKENIZER
from retrieval.bundle.signatures import SIGNATURE, new_keys
from retrieval.errors import BundleError, Unreachable
from retrieval.open import cache_store, open_store
from retrieval.store.local import Store
from retrieval.store.pull import pull
from tests.support.web_store import Handler, WebStore, cut_off, endless, failing, web_store

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0  # seconds until a test gives up waiting; none waits that long when all is well
BUFFERED = 16 << 20  # bytes that fit into the buffers of both sides after the client has stopped reading

PULL = """
import sys
from retrieval.open import open_store
from retrieval.store.pull import pull
print(pull(sys.argv[1], open_store(sys.argv[2])))
"""


@pytest.fixture
def web(there: Path) -> Iterator[WebStore]:
    with web_store(there) as served:
        yield served


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """Return the store that bundles are fetched into."""
    return open_store(tmp_path / "here")


def nothing_stays(store: Store) -> bool:
    """Return whether a store has no bundle and no staged or partial file."""
    aside = store.path / ".incoming"
    return store.bundles() == [] and not (aside.is_dir() and list(aside.iterdir()))


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle."""
    content = json.loads((bundle / MANIFEST).read_text())
    change(content)
    (bundle / MANIFEST).write_text(json.dumps(content))


def replace(bundle: Path, file: str, content: bytes) -> None:
    """Change a file of a bundle, and its manifest with it."""
    (bundle / file).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(bundle, lambda manifest: manifest["files"].update({file: entry}))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/CURRENT", "CURRENT has more than 256 bytes"),
        ("/bundles/one/manifest.json", f"manifest.json has more than {MANIFEST_LIMIT:,} bytes"),
        ("/bundles/one/manifest.sig", "manifest.sig has more than 1,024 bytes"),
        (f"/bundles/one/{LABELS}", rf"{LABELS} is not the file that manifest.json lists: it has more than \d+ bytes"),
    ],
)
def test_a_file_without_end_is_read_to_its_limit(web: WebStore, here: Store, path: str, said: str) -> None:
    """If it fails, a user who can write to the bucket can fill the memory or the disk of all readers."""
    web.handlers[path] = endless
    with pytest.raises(BundleError, match=said):
        pull(web.url, here)
    assert web.generated_bytes < BUFFERED
    assert nothing_stays(here)


@pytest.mark.parametrize(
    "name", ["../two", "/etc", "bundles/one", "one\ntwo", "", "\x00", "é", "x" * 65, "-x"]
)  # fmt: skip
def test_a_hostile_name_in_current_is_refused(there: Path, here: Store, name: str) -> None:
    """If it fails, CURRENT of a bucket selects a folder outside the store to write to."""
    (there / "CURRENT").write_text(name)
    with pytest.raises(BundleError, match=r"not a bundle name\. Activate a bundle there"):
        pull(f"file://{there}", here)
    assert nothing_stays(here)


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", MANIFEST, SIGNATURE, "-x", ".x"])
def test_a_file_name_that_leaves_the_folder_is_refused(there: Path, here: Store, name: str) -> None:
    """If it fails, a manifest can name files outside the bundle's folder."""
    entry = {"bytes": 1, "sha256": "0" * 64}
    rewrite(there / "bundles" / "one", lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError, match="is not a plain file name"):
        pull(f"file://{there}", here)
    assert nothing_stays(here)
    assert not (here.path.parent / "outside").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: (one / LABELS).write_bytes((one / LABELS).read_bytes()[:-1]), r"it has \d+ bytes, not \d+"),
        (lambda one: (one / LABELS).write_bytes((one / LABELS).read_bytes() + b"+"), r"it has more than \d+ bytes"),
        (lambda one: (one / GOLDEN).write_bytes((one / GOLDEN).read_bytes()[::-1]), "its SHA-256 differs"),
        (lambda one: (one / TOKENIZER).unlink(), f"{TOKENIZER} does not exist. But manifest.json lists it"),
        (lambda one: (one / MANIFEST).write_text("{"), "manifest.json is not JSON"),
        (lambda one: (one / MANIFEST).write_text("[" * 100_000), "manifest.json is not JSON"),
        (lambda one: rewrite(one, lambda manifest: manifest.update(format_version=7)), "version 7; .* versions 1 to 6"),
        (lambda one: rewrite(one, lambda manifest: manifest["files"].pop(INDEX)), f"files does not list {INDEX}"),
        (lambda one: rewrite(one, lambda manifest: manifest["files"][LABELS].update(bytes=10**15)), "bytes free"),
        (lambda one: rewrite(one, lambda manifest: manifest["files"][LABELS].update(bytes=-1)), "or equal to 0"),
        (lambda one: replace(one, INDEX, b"\xff" * 4096), f"bundles/one/{INDEX}"),
        (lambda one: replace(one, QUERY_ENCODER, b"\x08\x07" * 512), f"bundles/one/{QUERY_ENCODER}"),
    ],
)  # fmt: skip
def test_a_spoiled_bundle_gets_no_name(there: Path, here: Store, change: Callable[[Path], object], said: str) -> None:
    """If it fails, a damaged or hostile bundle is accepted, or the error does not name the file and its URL."""
    change(there / "bundles" / "one")
    with pytest.raises(BundleError, match=said) as refused:
        pull(f"file://{there}", here)
    assert f"file://{there}/bundles/one" in str(refused.value)
    assert str(here.path / ".incoming") not in str(refused.value)
    assert nothing_stays(here)


def test_no_file_of_a_bundle_without_a_trusted_signature_is_fetched(web: WebStore, here: Store) -> None:
    """If it fails, files of an unknown author are downloaded before the signature is checked."""
    with pytest.raises(BundleError, match=f"{web.url}/bundles/one is not signed, and DIPTYCH_TRUSTED_KEYS"):
        pull(web.url, open_store(here.path, trusted=[new_keys().trusted]))
    assert {path.rpartition("/")[2] for path in web.requests} == {"CURRENT", MANIFEST, SIGNATURE}
    assert nothing_stays(here)


def test_a_connection_that_breaks_leaves_nothing(web: WebStore, here: Store) -> None:
    """If it fails, an incomplete bundle is published, or its files remain on the disk."""
    web.handlers[f"/bundles/one/{INDEX}"] = cut_off
    with pytest.raises(BundleError, match=f"{web.url}/bundles/one/{INDEX} "):
        pull(web.url, here)
    assert nothing_stays(here)
    web.handlers.clear()
    assert pull(web.url, here) == "one"


def test_a_killed_download_is_swept_away_by_the_next(web: WebStore, here: Store) -> None:
    """If it fails, files of a killed download become a bundle, or are never removed."""
    begun, over = threading.Event(), threading.Event()

    def stall(handler: Handler) -> None:
        handler.begin(1_000_000).write(b"begun")
        begun.set()
        over.wait(PATIENCE)
        handler.close_connection = True

    web.handlers[f"/bundles/one/{INDEX}"] = stall
    with subprocess.Popen([sys.executable, "-c", PULL, web.url, here.path], cwd=ROOT) as pulling:
        assert begun.wait(PATIENCE)
        pulling.kill()
    over.set()
    assert pulling.returncode == -signal.SIGKILL
    assert here.bundles() == []
    assert len(list((here.path / ".incoming").iterdir())) == 1
    web.handlers.clear()
    assert pull(web.url, here) == "one"
    assert list((here.path / ".incoming").iterdir()) == []


def test_of_two_at_once_one_fetches(web: WebStore, here: Store) -> None:
    """If it fails, ten workers that start together download ten times, or damage each other's files."""
    both = threading.Event()

    def once_both_ask(handler: Handler) -> None:
        if web.requests.count(f"/bundles/one/{MANIFEST}") == 2:
            both.set()
        handler.serve_file()

    def wait(handler: Handler) -> None:
        both.wait(PATIENCE)
        handler.serve_file()

    web.handlers = {f"/bundles/one/{MANIFEST}": once_both_ask, f"/bundles/one/{INDEX}": wait}
    command = [sys.executable, "-c", PULL, web.url, str(here.path)]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as second,
    ):
        assert {first.communicate(timeout=PATIENCE)[0], second.communicate(timeout=PATIENCE)[0]} == {"one\n"}
    assert both.is_set()
    assert web.requests.count(f"/bundles/one/{INDEX}") == 1
    assert here.bundles() == ["one"]


def test_a_store_that_is_gone_is_an_error_or_a_warning(there: Path, tmp_path: Path) -> None:
    """If it fails, an outage ends a command that could use the cache, or an old bundle is used without a warning."""
    cache = tmp_path / "cache"
    with web_store(there) as web:
        open_bundle(web.url, cache=cache).close()
        pull(web.url, cache_store(web.url, cache), "two")
    with pytest.raises(Unreachable, match=f"{web.url}/CURRENT cannot be reached"):
        open_bundle(web.url, cache=tmp_path / "cold")
    with pytest.raises(Unreachable):
        pull(web.url, cache_store(web.url, cache))  # an explicit pull must not return an old bundle
    with (
        pytest.warns(RuntimeWarning, match="cannot be reached .* Bundle 'one' from the cache is used"),
        open_bundle(web.url, cache=cache) as retriever,
    ):
        assert retriever.name == "one"


def test_a_server_in_trouble_is_not_an_empty_store(web: WebStore, here: Store) -> None:
    """If it fails, an overloaded server is treated as a store without an active bundle or without signatures."""
    for path in ("/CURRENT", f"/bundles/one/{SIGNATURE}"):
        web.handlers = {path: failing}
        with pytest.raises(Unreachable, match=f"{web.url}{path} cannot be reached"):
            pull(web.url, here)


def test_an_outage_half_way_through_a_download_goes_on_with_the_last_one(
    web: WebStore, there: Path, tmp_path: Path
) -> None:
    """If it fails, an active bundle that cannot be fetched prevents the use of the previous one."""
    open_bundle(web.url, cache=tmp_path / "cache").close()
    (there / "CURRENT").write_text("two\n")
    web.handlers[f"/bundles/two/{INDEX}"] = cut_off
    with (
        pytest.warns(RuntimeWarning, match=rf"two/{INDEX} cannot be reached .* Bundle 'one' from the cache is used"),
        open_bundle(web.url, cache=tmp_path / "cache") as retriever,
    ):
        assert retriever.name == "one"
    store = cache_store(web.url, tmp_path / "cache")
    assert (store.bundles(), store.active()) == (["one"], "one")


def test_a_refusal_is_no_outage(there: Path, tmp_path: Path) -> None:
    """If it fails, a hostile bundle is treated as a network error, and an old one is used instead."""
    url = f"file://{there}"
    open_bundle(url, cache=tmp_path / "cache").close()
    (there / "CURRENT").write_text("two\n")
    (there / "bundles" / "two" / LABELS).write_bytes(b"not this")
    with pytest.raises(BundleError, match=f"two/{LABELS} is not the file") as refused:
        open_bundle(url, cache=tmp_path / "cache")
    assert not isinstance(refused.value, Unreachable)


def test_a_cache_that_cannot_be_written_says_so(there: Path, tmp_path: Path) -> None:
    """If it fails, a full or read-only disk ends in a traceback."""
    (tmp_path / "cache").write_text("a file, which also root cannot make folders in")
    with pytest.raises(BundleError, match=r"cannot be written \(Not a directory\)\. .* DIPTYCH_CACHE"):
        open_bundle(f"file://{there}", cache=tmp_path / "cache")
