"""Read the settings of the Milvus server from the environment."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from retrieval.errors import BadInput

URL, TOKEN, PREFIX = "DIPTYCH_MILVUS_URL", "DIPTYCH_MILVUS_TOKEN", "DIPTYCH_MILVUS_PREFIX"
SECONDS, WAIT_SECONDS = "DIPTYCH_MILVUS_SECONDS", "DIPTYCH_MILVUS_WAIT_SECONDS"
VARIABLES = (URL, TOKEN, PREFIX, SECONDS, WAIT_SECONDS)
DEFAULT_PREFIX, DEFAULT_SECONDS, DEFAULT_WAIT_SECONDS = "diptych", 2.0, 5.0
MAX_SECONDS = 600.0
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")  # of a collection, as Milvus accepts it


class MilvusSettings(NamedTuple):
    """Address of a Milvus server, and limits.

    url: "http://host:19530", or the path of a Milvus Lite file. token: "user:password" or an API key; empty: none.
    prefix: beginning of the names of collections and aliases. seconds: time limit of one search. wait_seconds: a search
    waits this long for a server that is away; after that, searches fail at once until the server is back.
    """

    url: str
    token: str = ""
    prefix: str = DEFAULT_PREFIX
    seconds: float = DEFAULT_SECONDS
    wait_seconds: float = DEFAULT_WAIT_SECONDS

    @property
    def alias(self) -> str:
        """Return the alias of the collection of the active bundle."""
        return f"{self.prefix}_active"


def milvus_settings(environment: Mapping[str, str] = os.environ) -> MilvusSettings:
    """Read the settings. Raises BadInput if there is no address, or a value is invalid."""
    url = environment.get(URL, "").strip()
    if not url:
        raise BadInput(f"{URL} is not set. Set it to the address of the Milvus server, such as http://127.0.0.1:19530.")
    prefix = environment.get(PREFIX) or DEFAULT_PREFIX
    if not NAME.fullmatch(prefix):
        raise BadInput(f"{PREFIX} is {prefix!r}; use at most 64 letters, digits and underscores, and no digit first.")
    return MilvusSettings(
        url, environment.get(TOKEN, ""), prefix, _seconds(environment, SECONDS, DEFAULT_SECONDS, least=0.001),
        _seconds(environment, WAIT_SECONDS, DEFAULT_WAIT_SECONDS, least=0.0),
    )  # fmt: skip


def longest_wait(environment: Mapping[str, str] = os.environ) -> float:
    """Return the longest time in seconds that a search can take because of Milvus; 0 without a server."""
    if not environment.get(URL, "").strip():
        return 0.0
    settings = milvus_settings(environment)
    return settings.wait_seconds + 2 * settings.seconds


def _seconds(environment: Mapping[str, str], name: str, default: float, least: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError as error:
        raise BadInput(f"{name} is {text!r}; it must be a number of seconds.") from error
    if not least <= value <= MAX_SECONDS:
        raise BadInput(f"{name} is {text}; it must be between {least:g} and {MAX_SECONDS:g} seconds.")
    return value
