"""The settings of the Milvus server, and a bundle's collection."""

import pytest

from retrieval.errors import BadInput
from retrieval.milvus.settings import MilvusSettings, longest_wait, milvus_settings
from service.settings import Settings


def test_settings_are_read_from_the_environment() -> None:
    """If it fails, commands and the service use different servers."""
    service = Settings(store="store", milvus_url="http://a:1", milvus_prefix="shop", milvus_seconds=3)  # type: ignore[arg-type]
    assert milvus_settings(service.milvus_variables) == MilvusSettings("http://a:1", "", "shop", 3.0, 5.0)
    assert service.batch_seconds == service.engine_timeout_seconds + 5 + 2 * 3


def test_without_a_server_nothing_waits() -> None:
    """If it fails, a hanging engine is noticed later although nothing uses Milvus."""
    assert longest_wait({}) == 0
    assert Settings(store="store").milvus_variables == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("PREFIX", "1shop"), ("PREFIX", "a-b"), ("SECONDS", "0"), ("SECONDS", "soon"), ("WAIT_SECONDS", "-1")],
)
def test_an_invalid_value_is_refused(name: str, value: str) -> None:
    """If it fails, a mistyped limit fails at the first search, or means no limit."""
    with pytest.raises(BadInput, match=f"DIPTYCH_MILVUS_{name}"):
        milvus_settings({"DIPTYCH_MILVUS_URL": "http://a:1", f"DIPTYCH_MILVUS_{name}": value})


def test_no_address_is_reported() -> None:
    """If it fails, a user without settings sees an error of a library."""
    with pytest.raises(BadInput, match="DIPTYCH_MILVUS_URL is not set"):
        milvus_settings({})
