"""Ed25519 signatures: a bundle's manifest names the hash of every file, so a signature of the manifest covers them all.

Keys are 32 bytes, written in base64. The signing key is a secret and comes from the environment alone; whoever is told
which keys to trust refuses every bundle that none of them has signed.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from retrieval.errors import BadInput, BundleError
from retrieval.nofollow import read_small

SIGNATURE = "manifest.sig"
SIGNING_KEY, TRUSTED_KEYS = "DIPTYCH_SIGNING_KEY", "DIPTYCH_TRUSTED_KEYS"
# So that no other message signed with the key passes for a manifest, and no serial number for the beginning of one.
PURPOSE = b"diptych bundle manifest\0"
PURPOSE_WITH_SERIAL = b"diptych bundle manifest with serial\0"
WITHOUT_SERIAL, WITH_SERIAL = "ed25519", "ed25519-serial"  # the first word of a signature file
MOST = (1 << 53) - 1  # of a serial number; greater ones are not exact in every JSON reader
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


def public_key(signing: str) -> str:
    """The key that others trust for a signing key. Raises BadInput for what is no key."""
    key = Ed25519PrivateKey.from_private_bytes(_bytes_of(signing, f"the key in {SIGNING_KEY}"))
    return _text(key.public_key().public_bytes_raw())


class Signature(NamedTuple):
    """Who signed a manifest, and the serial number that was signed with it; 0 where there was none yet."""

    key: str
    serial: int


class NotTrusted(BundleError):
    """No trusted key has signed the bundle."""


def signed(manifest: bytes, signing: str, serial: int) -> str:
    """Write what manifest.sig holds: the key that others trust, a serial number and a signature. Raises BadInput."""
    if not 0 < serial <= MOST:
        raise BadInput(f"the serial number is {serial}; it must be from 1 to {MOST}.")
    key = Ed25519PrivateKey.from_private_bytes(_bytes_of(signing, f"the key in {SIGNING_KEY}"))
    signature = key.sign(_message(manifest, serial))
    return f"{WITH_SERIAL} {_text(key.public_key().public_bytes_raw())} {serial} {_text(signature)}\n"


def check_signature(folder: Path, opened: int, manifest: bytes, trusted: Sequence[str]) -> Signature | None:
    """Return who signed these bytes; without `trusted` keys nothing is looked at, and the answer is None.

    `opened` is the descriptor of the bundle's folder. Raises NotTrusted unless one of the keys has signed.
    """
    if not trusted:
        return None
    path = folder / SIGNATURE
    try:
        signature, raw = parse_signature(path, read_small(path, LIMIT, opened))
    except FileNotFoundError as error:
        raise NotTrusted(
            f"{folder} is not signed, and only signed bundles are trusted here. Sign it, or take another."
        ) from error
    except OSError as error:
        raise NotTrusted(f"{path} cannot be read ({error.strerror}). Check its rights.") from error
    if signature.key not in trusted:
        raise NotTrusted(
            f"{path}: the key {signature.key} is not trusted here. Add it to {TRUSTED_KEYS}, or take another bundle."
        )
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.key))
        public.verify(raw, _message(manifest, signature.serial))
    except InvalidSignature as error:
        raise NotTrusted(
            f"{path} was not made for this manifest: one of the two was changed. Copy the bundle again."
        ) from error
    return signature


def parse_signature(path: Path, written: bytes) -> tuple[Signature, bytes]:
    """Read the bytes of a manifest.sig: what it claims, and the signature itself. Raises NotTrusted for other bytes."""
    refused = NotTrusted(f"{path} holds no signature. Sign the bundle again.")
    try:
        words = written.decode("ascii").split()
        if words[0] == WITHOUT_SERIAL:
            _, key, signature = words
            return Signature(key, 0), base64.b64decode(signature, validate=True)
        _, key, serial, signature = words
        number = int(serial)
        if words[0] != WITH_SERIAL or serial != str(number) or not 0 < number <= MOST:
            raise refused
        return Signature(key, number), base64.b64decode(signature, validate=True)
    except (ValueError, IndexError) as error:  # not ASCII, not these words, not base64
        raise refused from error


def _message(manifest: bytes, serial: int) -> bytes:
    return PURPOSE + manifest if serial == 0 else PURPOSE_WITH_SERIAL + b"%d\0" % serial + manifest


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
