"""Serial numbers of signatures: an older signed bundle is activated again only by a rollback."""

import json
import shutil
from pathlib import Path

import pytest

from retrieval import open_bundle
from retrieval.bundle.signatures import MAX_SERIAL, SIGNATURE, KeyPair, NotTrusted, Signature, new_keys, signed
from retrieval.errors import BadInput, BundleError
from retrieval.open import open_store
from retrieval.sandboxed_opening import verify_in_process
from retrieval.store.local import Store
from retrieval.store.serials import OlderSerial, Serials, process_records
from tests.support.bundles import make_store
from tests.support.command import run


@pytest.fixture(scope="module")
def keys() -> KeyPair:
    return new_keys()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, keys: KeyPair) -> Path:
    """Make the bundles one, two and three, signed with the numbers 1, 2 and 3; one is active."""
    store = make_store(tmp_path_factory.mktemp("signed") / "store", "one", "two", "three")
    for serial, name in enumerate(("one", "two", "three"), 1):
        assert store.sign(name, keys.signing, serial) == serial
    return store.path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a cache folder of this test, and a process without records."""
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    forget()
    return tmp_path / "cache"


@pytest.fixture
def store(made: Path, tmp_path: Path, keys: KeyPair) -> Store:
    return Store(shutil.copytree(made, tmp_path / "store"), verify_in_process, trusted=[keys.trusted])


def forget() -> None:
    """Remove the records of this process, as in a new process."""
    process_records.clear()


def test_an_older_signed_bundle_is_not_activated_again(store: Store) -> None:
    """If it fails, an attacker who can write to a store can activate a bundle that was replaced because it was bad."""
    store.activate("two")
    forget()
    with pytest.raises(OlderSerial, match="bundle one has the serial number 1, and 2 was active here before"):
        store.activate("one")
    store.activate("three")
    with pytest.raises(OlderSerial):
        store.activate("two")
    assert store.active() == "three"


def test_opening_a_store_checks_the_bundle_in_current(store: Store, keys: KeyPair) -> None:
    """If it fails, writing CURRENT with an editor bypasses the check."""
    (store.path / "CURRENT").write_text("three\n")
    open_bundle(store.path, trusted=[keys.trusted]).close()
    forget()
    (store.path / "CURRENT").write_text("two\n")
    (store.path / "HISTORY").write_text("three\ntwo\n")
    with pytest.raises(OlderSerial):
        open_bundle(store.path, trusted=[keys.trusted])
    with open_bundle(store.path) as retriever:  # without keys nothing is promised
        assert retriever.name == "two"


def test_a_bundle_that_is_exchanged_after_the_check_is_refused(
    store: Store, keys: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, an attacker who exchanges the folder at the right moment has an older signed bundle opened."""
    store.activate("two")
    check = Store.check_serial

    def check_and_exchange(self: Store, name: str) -> None:
        check(self, name)
        (store.path / "bundles" / "two").rename(store.path / "before")
        shutil.copytree(store.path / "bundles" / "one", store.path / "bundles" / "two")

    monkeypatch.setattr(Store, "check_serial", check_and_exchange)
    with pytest.raises(OlderSerial):
        open_bundle(store.path, trusted=[keys.trusted])


def test_a_rollback_allows_the_one_bundle_it_went_back_to(store: Store, keys: KeyPair) -> None:
    """If it fails, a rollback is refused where keys are trusted, or allows every older bundle."""
    for name in ("one", "two", "three"):
        store.activate(name)
    assert store.rollback() == "two"
    forget()
    open_bundle(store.path, trusted=[keys.trusted]).close()
    store.activate("two")
    with pytest.raises(OlderSerial):
        store.activate("one")
    store.activate("three")
    with pytest.raises(OlderSerial):
        store.activate("two")


def test_signing_again_makes_a_bundle_newer(store: Store, keys: KeyPair) -> None:
    """If it fails, an old bundle cannot be served again without a new export."""
    store.activate("three")
    assert store.sign("one", keys.signing) > 1_700_000_000
    store.activate("one")
    number = store.sign("two", keys.signing)
    assert number > json.loads(Serials(store.identity).path.read_text())["highest"][keys.trusted]
    store.activate("two")


def test_a_number_is_more_than_any_here(store: Store, keys: KeyPair) -> None:
    """If it fails, a machine whose clock is slow signs bundles that cannot be activated."""
    far = 9_000_000_000
    store.sign("three", keys.signing, far)
    assert store.sign("one", keys.signing) == far + 1
    (store.path / "bundles" / "two" / SIGNATURE).write_text(f"ed25519-serial {keys.trusted} {MAX_SERIAL} AAAA\n")
    assert store.sign("one", keys.signing) == far + 2  # a number without a valid signature does not count


def test_a_number_belongs_to_its_signature(store: Store, keys: KeyPair) -> None:
    """If it fails, an attacker who can write to a store gives an old signature a new number."""
    path = store.path / "bundles" / "one" / SIGNATURE
    scheme, key, _, signature = path.read_text().split()
    for text in (f"{scheme} {key} 99 {signature}", f"ed25519 {key} {signature}"):
        path.write_text(text)
        with pytest.raises(NotTrusted, match="is not a signature of this manifest"):
            store.activate("one")
    for number in ("01", "-1", "0", "1.5", "9" * 400, "x", str(MAX_SERIAL + 1)):
        path.write_text(f"{scheme} {key} {number} {signature}")
        with pytest.raises(NotTrusted, match="is not a valid signature file"):
            store.activate("one")
    with pytest.raises(BadInput, match="serial number is 0"):
        signed(b"", keys.signing, 0)


def test_signatures_without_a_number_count_as_the_oldest(store: Store, keys: KeyPair) -> None:
    """If it fails, signatures without a number are refused, or count as the newest."""
    import base64

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    folder = store.path / "bundles" / "one"
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(keys.signing))
    signature = key.sign(b"diptych bundle manifest\0" + (folder / "manifest.json").read_bytes())
    (folder / SIGNATURE).write_text(f"ed25519 {keys.trusted} {base64.b64encode(signature).decode()}\n")
    store.activate("one")
    store.activate("two")
    with pytest.raises(OlderSerial):
        store.activate("one")


def test_keys_and_stores_have_numbers_of_their_own() -> None:
    """If it fails, one team's serial numbers apply to another team's key or store."""
    Serials("/one").record_active(Signature("a", 9))
    Serials("/one").check("bundle", Signature("b", 1))
    Serials("/two").check("bundle", Signature("a", 1))
    with pytest.raises(OlderSerial):
        Serials("/one").check("bundle", Signature("a", 8))


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_process_remembers(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If it fails, a container with a read-only file system cannot serve signed bundles, or has no protection."""
    cache.write_text("a file, which also root cannot make folders in")
    for number in (2, 3):
        Serials("/one").record_active(Signature("a", number))
    with pytest.raises(OlderSerial):
        Serials("/one").check("bundle", Signature("a", 2))
    assert caplog.text.count("are remembered only by this process") == 1


def test_a_damaged_record_is_an_error(store: Store) -> None:
    """If it fails, a damaged file in the cache allows every old bundle."""
    store.activate("two")
    Serials(store.identity).path.write_text("{")
    with pytest.raises(BundleError, match="the record of serial numbers, cannot be read"):
        store.activate("three")


def test_every_command_asks_for_signatures(
    made: Path, tmp_path: Path, keys: KeyPair, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it fails, one of the commands uses a bundle that no trusted key has signed."""
    folder = shutil.copytree(made, tmp_path / "store")
    for name in ("one", "two"):
        (folder / "bundles" / name / SIGNATURE).unlink()
    Store(folder, verify_in_process).activate("two")
    (tmp_path / "queries.csv").write_text("query\nred\n")
    queries = tmp_path / "queries.csv"
    monkeypatch.setenv("DIPTYCH_TRUSTED_KEYS", keys.trusted)
    url = folder.as_uri()
    refused = [
        ("bundles", "activate", folder, "one"),
        ("bundles", "rollback", folder),
        ("bundles", "verify", folder, "one"),
        ("bundles", "verify", url, "one"),
        ("bundles", "show", folder, "one"),
        ("bundles", "show", url, "one"),
        ("bundles", "diff", folder, "one", "three", "--queries", queries),
        ("bundles", "pull", url, "--store", tmp_path / "pulled"),
        ("bundles", "pull", url, "--store", tmp_path / "pulled", "--activate"),
        ("search", folder, "red"),
        ("search", folder / "bundles" / "one", "red"),
        ("search", url, "red"),
        ("predict", "--bundle", folder, "--input", queries, "--output", tmp_path / "matches.csv"),
        ("serve", "--store", folder, "--port", "0"),
    ]
    for arguments in refused:
        assert run(*arguments) == 1, arguments
        assert "is not signed, and DIPTYCH_TRUSTED_KEYS requires a signature" in capsys.readouterr().err, arguments
    assert open_store(folder).active() == "two"
    assert run("bundles", "list", folder) == 0
    assert capsys.readouterr().out.count("not trusted") == 2
    assert run("bundles", "activate", folder, "three") == 0


def test_a_rollback_ends_for_every_process_with_the_next_bundle(store: Store, keys: KeyPair) -> None:
    """If it fails, a service that once rolled back opens that old bundle again after a newer one was activated."""
    for name in ("one", "two"):
        store.activate(name)
    assert store.rollback() == "one"
    of_service = dict(process_records)
    forget()
    store.activate("three")
    process_records.update(of_service)
    with pytest.raises(OlderSerial):
        store.activate("one")
