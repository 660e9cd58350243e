"""The sources of a service's bundles: folders whose path changes, and downloads that are given up."""

from pathlib import Path

import pytest

from retrieval.errors import BundleError
from service.bundles.store_access import PLACES_REMEMBERED, Source
from tests.support.bundles import make_store
from tests.support.web_store import web_store


def test_a_download_that_is_given_up_ends_and_lets_the_next_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large bundle that is no longer wanted would be fetched to its end, and the wanted one would wait for it."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    with web_store(make_store(tmp_path / "store", "one", "two").path) as web:
        source = Source(Path(web.url), ())
        with pytest.raises(BundleError, match="was given up"):
            source.bring("two", lambda: True)
        assert source.store.bundles() == []
        assert source.bring("one").name == "one"


def test_the_path_of_a_store_is_resolved_at_every_call_and_never_shown(tmp_path: Path) -> None:
    """A client would read where the store lies, once its link has been changed."""
    one, two = make_store(tmp_path / "first", "one"), make_store(tmp_path / "second", "two")
    link = tmp_path / "live"
    link.symlink_to(one.path)
    source = Source(link, ())
    assert source.look() == one.path / "bundles" / "one"
    link.unlink()
    link.symlink_to(two.path)
    assert source.look() == two.path / "bundles" / "two"
    for path in (link, one.path, two.path):
        assert source.public(f"{path}/CURRENT of {path} is bad") == "CURRENT of the store is bad"
    for number in range(2 * PLACES_REMEMBERED):
        link.unlink()
        (tmp_path / f"empty-{number}").mkdir()
        link.symlink_to(tmp_path / f"empty-{number}")
        with pytest.raises(BundleError, match="has no file CURRENT") as error:
            source.look()
        assert str(tmp_path) not in source.public(error.value)
    assert len(source._places) <= PLACES_REMEMBERED
    link.unlink()
    with pytest.raises(BundleError, match="cannot be reached: No such file"):
        source.look()
    link.symlink_to(link)
    with pytest.raises(BundleError, match="cannot be reached"):
        source.look()


def test_a_store_that_names_nothing_any_more_is_an_error(tmp_path: Path) -> None:
    """A share that is not mounted is an empty folder: it would look as if nothing had changed."""
    (tmp_path / "store").mkdir()
    with pytest.raises(BundleError, match="has no file CURRENT"):
        Source(tmp_path / "store", ()).look()
