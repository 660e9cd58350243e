"""Ed25519 signatures: a bundle's manifest names the hash of every file, so a signature of the manifest covers them all.

Keys are 32 bytes, written in base64. The signing key is a secret and comes from the environment alone; whoever is told
which keys to trust refuses every bundle that none of them has signed.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from retrieval.errors import BadInput, BundleError

SIGNATURE = "manifest.sig"
SIGNING_KEY, TRUSTED_KEYS = "DIPTYCH_SIGNING_KEY", "DIPTYCH_TRUSTED_KEYS"
PURPOSE = b"diptych bundle manifest\0"  # so that no other message signed with the key passes for a manifest
LIMIT = 1_024  # bytes of a signature file; it has about 140
KEY_BYTES = 32
MAKE_KEYS = "Make keys with `diptych bundles keygen`."


@dataclass(frozen=True)
class KeyPair:
    """A signing key, which is a secret, and the key that others trust; both in base64."""

    signing: str
    trusted: str


def new_keys() -> KeyPair:
    """A pair of keys that nobody has had before."""
    key = Ed25519PrivateKey.generate()
    return KeyPair(_text(key.private_bytes_raw()), _text(key.public_key().public_bytes_raw()))


def signing_key() -> str:
    """The signing key from the environment; BadInput where there is none."""
    if not (key := os.environ.get(SIGNING_KEY)):
        raise BadInput(f"no signing key: set {SIGNING_KEY} to the one that `diptych bundles keygen` printed.")
    return key


def trusted_keys(written: str | None = None) -> tuple[str, ...]:
    """Keys to trust, separated by commas, `written` or from the environment; none: signatures are not asked for."""
    text = os.environ.get(TRUSTED_KEYS, "") if written is None else written
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    for key in keys:
        _bytes_of(key, f"the key {key!r} in {TRUSTED_KEYS}")
    return keys


def signed(manifest: bytes, signing: str) -> str:
    """What manifest.sig holds for a manifest: the key that others trust, and the signature. Raises BadInput."""
    key = Ed25519PrivateKey.from_private_bytes(_bytes_of(signing, f"the key in {SIGNING_KEY}"))
    return f"ed25519 {_text(key.public_key().public_bytes_raw())} {_text(key.sign(PURPOSE + manifest))}\n"


def check_signature(folder: Path, manifest: bytes, trusted: Sequence[str]) -> None:
    """BundleError unless one of the `trusted` keys has signed these bytes; without such keys nothing is looked at."""
    if not trusted:
        return
    path = folder / SIGNATURE
    if not path.is_file():
        raise BundleError(
            f"{folder} is not signed, and only signed bundles are trusted here. Sign it, or take another."
        )
    scheme, key, signature = _read(path)
    if scheme != "ed25519" or key not in trusted:
        raise BundleError(
            f"{path}: the key {key} is not trusted here. Add it to {TRUSTED_KEYS}, or take another bundle."
        )
    try:
        Ed25519PublicKey.from_public_bytes(base64.b64decode(key)).verify(signature, PURPOSE + manifest)
    except InvalidSignature as error:
        raise BundleError(
            f"{path} was not made for this manifest: one of the two was changed. Copy the bundle again."
        ) from error


def _read(path: Path) -> tuple[str, str, bytes]:
    refused = BundleError(f"{path} holds no signature. Sign the bundle again.")
    if path.stat().st_size > LIMIT:
        raise refused
    try:
        scheme, key, signature = path.read_text(encoding="ascii").split()
        return scheme, key, base64.b64decode(signature, validate=True)
    except ValueError as error:  # not ASCII, not three words, not base64
        raise refused from error


def _bytes_of(key: str, name: str) -> bytes:
    try:
        raw = base64.b64decode(key, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise BadInput(f"{name} is not base64. {MAKE_KEYS}") from error
    if len(raw) != KEY_BYTES:
        raise BadInput(f"{name} has {len(raw)} bytes where {KEY_BYTES} are needed. {MAKE_KEYS}")
    return raw


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
