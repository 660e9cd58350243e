"""Check the admin and predict keys in request headers."""

import hashlib
import hmac
from collections.abc import Mapping

from service.access.key_guessing import GuessLimit
from service.access.key_headers import ADMIN_HEADER, PREDICT_HEADER
from service.access.key_settings import UNKNOWN
from service.errors import Refusal
from service.observe.metrics import Metrics
from service.request_context import RequestContext


class KeyRing:
    """Keys by name. A key is compared with all of them, each in constant time."""

    def __init__(self, keys: Mapping[str, str]) -> None:
        self._digests = [(name, _digest(key.encode())) for name, key in keys.items()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def match(self, key: bytes) -> str | None:
        """Return the name of a key; None when it is unknown."""
        digest, match = _digest(key), None
        for name, known in self._digests:
            if hmac.compare_digest(digest, known):
                match = name
        return match


class _Check:
    """Match the key in one header against a ring, and slow down guessing."""

    def __init__(self, ring: KeyRing, header: str, guesses: GuessLimit, metrics: Metrics, owner: str) -> None:
        self._ring = ring
        self._header = header.lower().encode()
        self._guesses = guesses
        self._message = f"This needs {owner} key in the header {header}."
        self._wrong_keys = metrics.wrong_keys.labels(header)

    def name(self, context: RequestContext) -> str:
        """Return the name of the key. Raises Refusal 401 without a valid key, and 429 after too many wrong ones."""
        if not (value := context.headers.get(self._header, b"")):
            raise Refusal(401, "wrong_key", self._message)
        name, address = self._ring.match(value), context.address
        if name and self._guesses.knows(address, name):
            return name
        context.key_name = UNKNOWN
        self._guesses.admit(address)
        if name is None:
            self._guesses.wrong(address)
            self._wrong_keys.inc()
            raise Refusal(401, "wrong_key", self._message)
        self._guesses.remember(address, name)
        return name


class AdminKeys:
    """Keys of the admin routes, which are off without any key."""

    def __init__(self, keys: Mapping[str, str], guesses: GuessLimit, metrics: Metrics) -> None:
        self._ring = KeyRing(keys)
        self._check = _Check(self._ring, ADMIN_HEADER, guesses, metrics, "the administrator's")

    def check(self, context: RequestContext) -> None:
        """Check the admin key and store its name in the context.

        Raises Refusal 403 when administration is off, 401 without a valid key, and 429 after too many wrong ones.
        """
        if not self._ring:
            message = "Administration is off: the service was started without DIPTYCH_ADMIN_KEY and DIPTYCH_ADMIN_KEYS."
            raise Refusal(403, "admin_off", message)
        context.key_name = self._check.name(context)


class PredictKeys:
    """Keys of /predict, which is open without any key."""

    def __init__(self, keys: list[str], guesses: GuessLimit, metrics: Metrics) -> None:
        # callers are identified by the digest of their key, which is not secret and has a fixed size
        self._ring = KeyRing({_digest(key.encode()).hex(): key for key in keys})
        self._check = _Check(self._ring, PREDICT_HEADER, guesses, metrics, "a")

    def __bool__(self) -> bool:
        return bool(self._ring)

    def check(self, context: RequestContext) -> bytes | None:
        """Return the digest of the caller's key; None when no key is needed.

        Raises Refusal 401 without a valid key, and 429 after too many wrong ones.
        """
        return self._check.name(context).encode() if self._ring else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
