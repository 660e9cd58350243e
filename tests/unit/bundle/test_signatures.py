"""Signed bundles: with trusted keys, no other bundle is opened."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval import Store, open_bundle, open_store
from retrieval.bundle.manifest import Manifest
from retrieval.bundle.signatures import SIGNATURE, KeyPair, new_keys, signed, trusted_keys
from retrieval.bundle.verified_files import seal
from retrieval.errors import BadInput, BundleError
from service.settings import Settings
from tests.support.bundles import make_store
from tests.support.command import run


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return new_keys()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, keys: KeyPair) -> Store:
    """Make a store with two bundles, of which `one` is signed."""
    store = make_store(tmp_path_factory.mktemp("signed") / "store", "one", "two")
    store.sign("one", keys.signing)
    return store


def test_a_signed_bundle_opens_for_those_who_trust_its_key(store: Store, keys: KeyPair) -> None:
    """If it fails, a service that requires signatures cannot serve, or one that does not is refused."""
    for trusted in ((), (keys.trusted,), (new_keys().trusted, keys.trusted)):
        with open_bundle(store.path, trusted=trusted) as retriever:
            assert len(retriever.search(["red shoes"], 3)[0]) == 3
    assert store.verify("one").labels.count == 200


def test_an_unsigned_bundle_or_another_key_is_refused(store: Store, keys: KeyPair) -> None:
    """If it fails, every user who can write to the store can change the served content."""
    with pytest.raises(BundleError, match="two is not signed"):
        open_bundle(store.bundle_path("two"), trusted=(keys.trusted,))
    with pytest.raises(BundleError, match="is not trusted"):
        open_bundle(store.path, trusted=(new_keys().trusted,))


def changed_manifest(folder: Path, keys: KeyPair) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"trained": 200', '"trained": 199'))


def changed_file_and_manifest(folder: Path, keys: KeyPair) -> None:
    (folder / "golden.json").write_text((folder / "golden.json").read_text() + " ")
    facts = dict(Manifest.model_validate_json((folder / "manifest.json").read_bytes()))
    seal(folder, **{name: value for name, value in facts.items() if name not in ("files", "format_version")})


def signature_of_another(folder: Path, keys: KeyPair) -> None:
    (folder / SIGNATURE).write_text(signed(b"another manifest", keys.signing, 1))


def signature_by_another(folder: Path, keys: KeyPair) -> None:
    """Sign with another key, and name the trusted key."""
    forged = signed((folder / "manifest.json").read_bytes(), new_keys().signing, 1).split()
    (folder / SIGNATURE).write_text(f"{forged[0]} {keys.trusted} {forged[2]} {forged[3]}")


def no_signature_at_all(folder: Path, keys: KeyPair) -> None:
    (folder / SIGNATURE).write_bytes(b"\xff not a signature")


def an_endless_one(folder: Path, keys: KeyPair) -> None:
    (folder / SIGNATURE).write_text("ed25519 " * 1000)


TAMPERINGS = [
    changed_manifest, changed_file_and_manifest, signature_of_another, signature_by_another, no_signature_at_all,
    an_endless_one,
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERINGS)
def test_every_change_is_refused(
    store: Store, keys: KeyPair, tmp_path: Path, tamper: Callable[[Path, KeyPair], None]
) -> None:
    """If it fails, a bundle that was changed after it was signed, with updated hashes, is served."""
    folder = shutil.copytree(store.bundle_path("one"), tmp_path / "copy")
    tamper(folder, keys)
    with pytest.raises(BundleError, match=SIGNATURE):
        open_bundle(folder, trusted=(keys.trusted,))


def test_the_commands_make_keys_sign_and_refuse(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, bundles cannot be signed from the command line, or unsigned bundles are used."""
    copied = open_store(shutil.copytree(store.path, tmp_path / "store"))
    assert run("bundles", "sign", copied.path, "two") == 1
    assert "DIPTYCH_SIGNING_KEY is not set" in capsys.readouterr().err
    assert run("bundles", "keygen") == 0
    printed = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    for name, key in printed.items():
        monkeypatch.setenv(name, key)
    assert run("search", copied.path / "bundles" / "two", "red") == 1
    assert "is not signed" in capsys.readouterr().err
    assert run("bundles", "sign", copied.path, "two") == 0
    assert run("search", copied.path / "bundles" / "two", "red") == 0
    assert printed["DIPTYCH_SIGNING_KEY"] not in capsys.readouterr().out


@pytest.mark.parametrize(("key", "why"), [("secret!", "not base64"), ("c2hvcnQ=", "has 5 bytes, not 32")])
def test_what_is_no_key_is_refused_at_start(key: str, why: str) -> None:
    """If it fails, a service with a mistyped key starts and can serve nothing, or trusts every bundle."""
    with pytest.raises(BadInput, match=why):
        trusted_keys(key)
    with pytest.raises(BadInput, match=rf"DIPTYCH_TRUSTED_KEYS: .*{why}"):
        Settings.load(store="store", trusted_keys=key)
    with pytest.raises(BadInput, match=why):
        signed(b"", key, 1)
