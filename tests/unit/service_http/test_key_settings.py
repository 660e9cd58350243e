"""Checks of keys that an operator sets, and lists of named keys."""

from pathlib import Path

import pytest

from retrieval.errors import BadInput
from service.access.key_settings import named_admin_keys, weak_predict_keys, weakness
from service.settings import Settings

STRONG = "k7Qw-92mXz.Lp4Rt"
OTHER = "Zt5!pq8Rw3-uJ6yM"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "short",
        "k7Qw-92mXz.Lp4R",  # 15 characters
        "aaaaaaaaaaaaaaaaaaaaaaaa",
        "abababababababababab",
        "changemechangeme",
        "changemechangemechange",
        "passwordpassword",
        "0123456789abcdef",
        "abcdefghijklmnopqrstuvwxyz",
        "zyxwvutsrqponmlkjihg",
        "1111111111222222222233333333334444",
    ],
)
def test_a_key_that_is_easy_to_guess_is_weak(key: str) -> None:
    """A service would start with a key that is on lists of common keys."""
    assert weakness(key)


@pytest.mark.parametrize(
    "key", [STRONG, OTHER, "the administrator's key", "f3a91c07e2b84d56", "9b1deb4d-3b7d-4bad-9bdd"]
)
def test_a_key_as_generators_make_them_is_strong(key: str) -> None:
    """`openssl rand`, a UUID or a sentence would be refused."""
    assert weakness(key) is None


def test_named_keys_are_read_by_name() -> None:
    """A key with an equals sign, such as base64, would be cut, or a name would get another name's key."""
    assert named_admin_keys(f" ann={STRONG}== ,\nci.2={OTHER},") == {"ann": f"{STRONG}==", "ci.2": OTHER}


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ADMIN_KEY": "hunter2"}, r"DIPTYCH_ADMIN_KEY: the key is too weak: it has 7 characters"),
        ({"ADMIN_KEY": f"{STRONG}ü"}, "DIPTYCH_ADMIN_KEY: the key has a character that a header cannot carry"),
        ({"ADMIN_KEY": f"{STRONG}\n{STRONG}"}, "a header cannot carry"),
        ({"ADMIN_KEYS": "ann=hunter2"}, "DIPTYCH_ADMIN_KEYS: ann: the key is too weak: it has 7 characters"),
        ({"ADMIN_KEYS": STRONG}, "DIPTYCH_ADMIN_KEYS: entry 1 is not name=key"),
        ({"ADMIN_KEYS": f"ann={STRONG},={OTHER}"}, "entry 2 is not name=key"),
        ({"ADMIN_KEYS": f"a b={STRONG}"}, "entry 1 is not name=key"),
        ({"ADMIN_KEYS": f"unknown={STRONG}"}, "is not unknown"),
        ({"ADMIN_KEYS": f"ann={STRONG},ann={OTHER}"}, "the name ann is used twice"),
        ({"ADMIN_KEYS": f"ann={STRONG},bob={STRONG}"}, "bob has the same key as another name"),
        ({"ADMIN_KEYS": " , "}, "there is no key in it"),
        ({"ADMIN_KEY": STRONG, "ADMIN_KEYS": f"admin={OTHER}"}, "the name admin is that of DIPTYCH_ADMIN_KEY"),
        ({"ADMIN_KEY": STRONG, "ADMIN_KEYS": f"ann={STRONG}"}, "one of its keys is DIPTYCH_ADMIN_KEY too"),
        ({"ADMIN_KEY": STRONG, "PREDICT_KEY": f"x,{STRONG}"}, "one of its keys is an administrator's"),
        ({"ADMIN_KEYS": f"ann={STRONG}", "PREDICT_KEY": STRONG}, "one of its keys is an administrator's"),
    ],
)
def test_bad_keys_are_one_sentence_that_does_not_show_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    """A service would start with a weak or ambiguous key, or its log would have the key."""
    for name, value in variables.items():
        monkeypatch.setenv(f"DIPTYCH_{name}", value)
    with pytest.raises(BadInput, match=sentence) as refused:
        Settings.load(store=Path("s"))
    assert not any(key in str(refused.value) for key in (STRONG, OTHER, "hunter2"))


def test_both_variables_count_while_a_key_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moving from one key to several would lock an administrator out, or a final newline would be part of the key."""
    monkeypatch.setenv("DIPTYCH_ADMIN_KEY", f"{STRONG}\n")
    monkeypatch.setenv("DIPTYCH_ADMIN_KEYS", f"ann={OTHER}")
    assert Settings.load(store=Path("s")).administrators == {"admin": STRONG, "ann": OTHER}


def test_weak_keys_of_callers_are_named_by_their_place() -> None:
    """An operator would not learn that a caller's key can be guessed, or the warning would contain the key."""
    sentences = weak_predict_keys([STRONG, "alpha"])
    assert len(sentences) == 1
    assert "key 2 is weak: it has 5 characters" in sentences[0]
    assert "alpha" not in sentences[0]
