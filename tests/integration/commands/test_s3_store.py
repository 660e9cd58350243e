"""A store in S3, through s3fs and an S3 server on the loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from retrieval import open_bundle
from retrieval.errors import BundleError, Unreachable
from retrieval.open import cache_store
from retrieval.store.paused_labels import write_paused
from service.bundles.store_access import StoreAccess
from tests.support.bundles import make_store
from tests.support.command import run

URL = "s3://bucket/shop/store"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    """Start an S3 server on a free port; s3fs reads its address and credentials from the environment."""
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield running
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_in_s3_is_served_changed_and_followed(
    server: ThreadedMotoServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, a store does not work in a bucket, or its changes and its removal are not noticed."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    made = make_store(tmp_path / "store", "one", "two")
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    files.put(str(made.path), "bucket/shop/store", recursive=True)

    with open_bundle(URL) as fetched, open_bundle(made.path) as there:
        assert fetched.search(["red shoes", "light rain"], 5) == there.search(["red shoes", "light rain"], 5)
    assert run("bundles", "list", URL) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["*", "one"]
    files.pipe("bucket/shop/store/CURRENT", b"two\n")
    with open_bundle(URL) as retriever:
        assert retriever.name == "two"
    source = StoreAccess(Path(URL), [])
    with open_bundle(URL) as retriever:
        gone = retriever.search(["red shoes"], 1)[0][0].id
    source.amend_paused(lambda content: write_paused([gone]))
    source.activate(source.folder("one"))
    source.record_rollback(source.folder("two"))
    assert (files.cat("bucket/shop/store/CURRENT"), source.previous()) == (b"two\n", None)
    for cache in ("cache", "empty"):
        with open_bundle(URL, cache=tmp_path / cache) as retriever:
            assert retriever.name == "two"
            assert gone not in [hit.id for hit in retriever.search(["red shoes"], 5)[0]]
    for url, said in (("s3://bucket/shop/stoer", "is neither a store"), ("s3://elsewhere/store", "is neither a store")):
        with pytest.raises(BundleError, match=said):
            open_bundle(url)

    server.stop()
    with pytest.warns(RuntimeWarning, match="Bundle 'two' from the cache is used"), open_bundle(URL) as retriever:
        assert retriever.name == cache_store(URL).active() == "two"
    with pytest.raises(Unreachable, match=rf"{URL}/CURRENT cannot be reached"):
        open_bundle(URL, cache=tmp_path / "cold")
