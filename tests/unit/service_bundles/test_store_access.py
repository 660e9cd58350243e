"""Access to the served store: folders whose path changes, and downloads that are cancelled."""

from pathlib import Path

import pytest

from retrieval.errors import BundleError
from service.bundles.store_access import MAX_RESOLVED_PATHS, StoreAccess
from tests.support.bundles import make_store
from tests.support.web_store import web_store


def test_a_download_that_is_cancelled_ends_and_lets_the_next_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large bundle that is no longer needed would be downloaded completely before the next one."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    with web_store(make_store(tmp_path / "store", "one", "two").path) as web:
        access = StoreAccess(Path(web.url), ())
        with pytest.raises(BundleError, match="was cancelled"):
            access.fetch("two", lambda: True)
        assert access.local_store.bundles() == []
        assert access.fetch("one").name == "one"


def test_the_path_of_a_store_is_resolved_at_every_call_and_never_shown(tmp_path: Path) -> None:
    """A client would see the path of the store after its symlink has changed."""
    one, two = make_store(tmp_path / "first", "one"), make_store(tmp_path / "second", "two")
    link = tmp_path / "live"
    link.symlink_to(one.path)
    access = StoreAccess(link, ())
    assert access.active_folder() == one.path / "bundles" / "one"
    link.unlink()
    link.symlink_to(two.path)
    assert access.active_folder() == two.path / "bundles" / "two"
    for path in (link, one.path, two.path):
        assert access.public(f"{path}/CURRENT of {path} is bad") == "CURRENT of the store is bad"
    for number in range(2 * MAX_RESOLVED_PATHS):
        link.unlink()
        (tmp_path / f"empty-{number}").mkdir()
        link.symlink_to(tmp_path / f"empty-{number}")
        with pytest.raises(BundleError, match="has no file CURRENT") as error:
            access.active_folder()
        assert str(tmp_path) not in access.public(error.value)
    assert len(access._resolved_paths) <= MAX_RESOLVED_PATHS
    link.unlink()
    with pytest.raises(BundleError, match="cannot be reached: No such file"):
        access.active_folder()
    link.symlink_to(link)
    with pytest.raises(BundleError, match="cannot be reached"):
        access.active_folder()


def test_a_store_without_an_active_bundle_is_an_error(tmp_path: Path) -> None:
    """A share that is not mounted is an empty folder: it would look as if nothing had changed."""
    (tmp_path / "store").mkdir()
    with pytest.raises(BundleError, match="has no file CURRENT"):
        StoreAccess(tmp_path / "store", ()).active_folder()
