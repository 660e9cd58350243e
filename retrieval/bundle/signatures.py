"""Ed25519 signatures of manifests. A manifest lists the hash of every file, so its signature covers the whole bundle.

Keys are 32 bytes in base64. The signing key is a secret and is read from the environment only. A reader with trusted
keys refuses every bundle that none of them has signed.
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
from retrieval.system.safe_open import read_small

SIGNATURE = "manifest.sig"
SIGNING_KEY, TRUSTED_KEYS = "DIPTYCH_SIGNING_KEY", "DIPTYCH_TRUSTED_KEYS"
# Prefixes of signed messages: they keep manifests with and without serial numbers, and other messages, apart.
PURPOSE = b"diptych bundle manifest\0"
PURPOSE_WITH_SERIAL = b"diptych bundle manifest with serial\0"
WITHOUT_SERIAL, WITH_SERIAL = "ed25519", "ed25519-serial"  # the first word of a signature file
MAX_SERIAL = (1 << 53) - 1  # larger numbers are not exact in every JSON reader
LIMIT = 1_024  # bytes of a signature file; it has about 140
KEY_BYTES = 32
MAKE_KEYS = "Create keys with `diptych bundles keygen`."


@dataclass(frozen=True)
class KeyPair:
    """A signing key, which is secret, and the trusted key that verifies its signatures; both in base64."""

    signing: str
    trusted: str


def new_keys() -> KeyPair:
    """Generate a pair of keys."""
    key = Ed25519PrivateKey.generate()
    return KeyPair(_text(key.private_bytes_raw()), _text(key.public_key().public_bytes_raw()))


def signing_key() -> str:
    """Return the signing key from the environment. Raises BadInput if it is not set."""
    if not (key := os.environ.get(SIGNING_KEY)):
        raise BadInput(f"{SIGNING_KEY} is not set. Set it to a signing key; `diptych bundles keygen` creates one.")
    return key


def trusted_keys(written: str | None = None) -> tuple[str, ...]:
    """Parse trusted keys, separated by commas; default: from the environment. Without any, signatures are not checked.

    Raises BadInput for an invalid key.
    """
    text = os.environ.get(TRUSTED_KEYS, "") if written is None else written
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    for key in keys:
        _bytes_of(key, f"the key {key!r} in {TRUSTED_KEYS}")
    return keys


def public_key(signing: str) -> str:
    """Return the trusted key of a signing key. Raises BadInput for an invalid key."""
    key = Ed25519PrivateKey.from_private_bytes(_bytes_of(signing, f"the key in {SIGNING_KEY}"))
    return _text(key.public_key().public_bytes_raw())


class Signature(NamedTuple):
    """The key that signed a manifest, and the signed serial number; 0 for signatures without one."""

    key: str
    serial: int


class NotTrusted(BundleError):
    """No trusted key has signed the bundle."""


def signed(manifest: bytes, signing: str, serial: int) -> str:
    """Return the content of manifest.sig: trusted key, serial number and signature. Raises BadInput."""
    if not 0 < serial <= MAX_SERIAL:
        raise BadInput(f"the serial number is {serial}; it must be from 1 to {MAX_SERIAL}.")
    key = Ed25519PrivateKey.from_private_bytes(_bytes_of(signing, f"the key in {SIGNING_KEY}"))
    signature = key.sign(_message(manifest, serial))
    return f"{WITH_SERIAL} {_text(key.public_key().public_bytes_raw())} {serial} {_text(signature)}\n"


def check_signature(folder: Path, opened: int, manifest: bytes, trusted: Sequence[str]) -> Signature | None:
    """Verify the signature of a manifest and return it; None without `trusted` keys, when nothing is checked.

    `opened` is the descriptor of the bundle's folder. Raises NotTrusted unless one of the keys signed the manifest.
    """
    if not trusted:
        return None
    path = folder / SIGNATURE
    try:
        signature, raw = parse_signature(path, read_small(path, LIMIT, opened))
    except FileNotFoundError as error:
        raise NotTrusted(
            f"{folder} is not signed, and {TRUSTED_KEYS} requires a signature. Sign it, or use another bundle."
        ) from error
    except OSError as error:
        raise NotTrusted(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    if signature.key not in trusted:
        raise NotTrusted(
            f"{path}: the key {signature.key} is not trusted. Add it to {TRUSTED_KEYS}, or use another bundle."
        )
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(signature.key))
        public.verify(raw, _message(manifest, signature.serial))
    except InvalidSignature as error:
        raise NotTrusted(
            f"{path} is not a signature of this manifest: one of the two was changed. Copy the bundle again."
        ) from error
    return signature


def parse_signature(path: Path, written: bytes) -> tuple[Signature, bytes]:
    """Parse a manifest.sig; return its claims and the raw signature. Raises NotTrusted if it is invalid."""
    refused = NotTrusted(f"{path} is not a valid signature file. Sign the bundle again.")
    try:
        words = written.decode("ascii").split()
        if words[0] == WITHOUT_SERIAL:
            _, key, signature = words
            return Signature(key, 0), base64.b64decode(signature, validate=True)
        _, key, serial, signature = words
        number = int(serial)
        if words[0] != WITH_SERIAL or serial != str(number) or not 0 < number <= MAX_SERIAL:
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
        raise BadInput(f"{name} has {len(raw)} bytes, not {KEY_BYTES}. {MAKE_KEYS}")
    return raw


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
