"""Settings and request limits."""

from pathlib import Path

import pytest

from retrieval.errors import BadInput
from service.errors import Refusal
from service.http.schemas import parse, predict_request
from service.settings import Settings, unknown_variables


def test_the_command_line_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--port` would be ignored where DIPTYCH_PORT is set."""
    monkeypatch.setenv("DIPTYCH_PORT", "9001")
    monkeypatch.setenv("DIPTYCH_MAX_K", "7")
    settings = Settings.load(store=Path("s"), port=9002, host=None)
    assert (settings.port, settings.max_k, settings.host) == (9002, 7, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DIPTYCH_PORT", "http", "DIPTYCH_PORT: Input should be a valid integer"),
        ("DIPTYCH_MAX_K", "0", "DIPTYCH_MAX_K: Input should be greater than or equal to 1"),
        ("DIPTYCH_MAX_WAITING_QUERIES", "3", "could never be admitted"),
        ("DIPTYCH_CORS_ORIGINS", "https://a.example, shop.example", "'shop.example' is not an origin"),
        ("DIPTYCH_CORS_ORIGINS", "https://a.example/", "is not an origin"),
        ("DIPTYCH_PREDICT_KEY", " , ", "DIPTYCH_PREDICT_KEY: it has no key"),
        ("DIPTYCH_LOG_FORMAT", "xml", "DIPTYCH_LOG_FORMAT: Input should be 'auto', 'json' or 'text'"),
    ],
)
def test_a_bad_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str) -> None:
    """An operator would read a validation traceback instead of the variable's name."""
    monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=sentence):
        Settings.load(store=Path("s"))


def test_a_misspelt_setting_is_named() -> None:
    """An operator would rely on a limit that has no effect."""
    assert unknown_variables(["DIPTYCH_MAX_K", "diptych_port", "DIPTYCH_CACHE", "DIPTYCH_SIGNING_KEY", "PATH"]) == []
    assert unknown_variables(["DIPTYCH_RATE_LIMITS", "DIPTYCH_COLOUR"]) == [
        "DIPTYCH_COLOUR is not a known setting; ignored.",
        "DIPTYCH_RATE_LIMITS is not a known setting; ignored. Did you mean DIPTYCH_RATE_LIMIT?",
    ]


def test_a_missing_store_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`diptych serve` without a store would fail without saying what is missing."""
    monkeypatch.delenv("DIPTYCH_STORE", raising=False)
    with pytest.raises(BadInput, match="DIPTYCH_STORE"):
        Settings.load()


def test_keys_are_not_shown() -> None:
    """Printing the settings, in a log or an error, would show the keys."""
    assert "hunter2" not in repr(Settings(store="s", admin_key="hunter2 of the admin", predict_key="hunter2"))


def test_a_rate_limit_admits_the_largest_request() -> None:
    """A request that is allowed by its size could never be admitted."""
    assert Settings(store="s", rate_limit=1).burst == 256
    assert Settings(store="s", rate_limit=1000.5).burst == 1001
    with pytest.raises(BadInput, match=r"rate_burst \(9\) is below max_queries \(256\)"):
        Settings.load(store=Path("s"), rate_limit=1, rate_burst=9)


def test_limits_of_a_request_are_the_settings() -> None:
    """A limit that an operator set would have no effect, or OpenAPI would show another one."""
    model = predict_request(Settings(store="s", max_k=5, max_queries=2, max_query_chars=3))
    fields = model.model_json_schema()["properties"]
    assert (fields["k"]["maximum"], fields["k"]["default"], fields["queries"]["maxItems"]) == (5, 5, 2)
    assert fields["queries"]["items"]["maxLength"] == 3
    for body in (b'{"queries":["a"],"k":6}', b'{"queries":["a","b","c"]}', b'{"queries":["abcd"]}'):
        with pytest.raises(Refusal):
            parse(model, body)


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker Compose passes unset variables as empty: the service would not start, or have an empty key."""
    for name in ("DIPTYCH_ADMIN_KEY", "DIPTYCH_PREDICT_KEY", "DIPTYCH_RATE_LIMIT", "DIPTYCH_PROVIDER"):
        monkeypatch.setenv(name, "")
    loaded = Settings.load(store=Path("s"))
    assert (loaded.admin_key, loaded.predict_key, loaded.rate_limit, loaded.provider) == (None, None, None, "cpu")
