"""Read the settings of the service, all limits included, from the environment."""

import math
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BadInput
from retrieval.system.limits import GROUPS
from retrieval.system.sandbox import Mode
from service.access.allowed_hosts import AllowedHosts
from service.access.client_address import proxy_networks
from service.access.key_settings import SINGLE, checked_admin_key, named_admin_keys
from service.file_limits import DEFAULT_CONNECTIONS
from service.observe.logs import Form

PREFIX = "DIPTYCH_"
OTHERS = {"CACHE", "SIGNING_KEY"}  # variables of other commands
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


class Settings(BaseSettings):
    """Settings of `diptych serve`. Each field is the variable DIPTYCH_<FIELD>; the command line takes precedence."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    store: Path = Field(description="folder of bundles, written by `diptych export`")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0 takes any free port")
    admin_key: SecretStr | None = Field(
        None, description="key of the admin routes, at least 16 characters; they are off without one"
    )
    admin_keys: SecretStr | None = Field(
        None,
        description="more admin keys, comma-separated, each with a name for the audit log: name=key. Two valid keys at "
        "a time allow rotation without a gap. The name of DIPTYCH_ADMIN_KEY is admin",
    )
    allowed_hosts: str = Field(
        "",
        description="allowed Host headers, comma-separated: shop.example, *.shop.example, 10.0.0.0/8, ::1; others are "
        "refused with 421, except on /livez and /readyz. Unset: any",
    )

    predict_key: SecretStr | None = Field(None, description="keys that may ask, by commas; anybody may without one")
    rate_limit: float | None = Field(
        None,
        gt=0,
        description="texts per second per key, or per address when no key is needed; unset: unlimited",
    )
    rate_burst: int | None = Field(
        None,
        ge=1,
        description="burst of the rate limit, in texts; by default one second's, at least the largest request",
    )
    trusted_proxies: str = Field(
        "", description="trusted sources of X-Forwarded-For: addresses, networks, comma-separated; unset: none"
    )
    cors_origins: str = Field("", description="origins whose pages may ask, by commas; * for all, none unless set")

    trusted_keys: str = Field(
        "", description="keys, by commas; with any, only bundles that one of them signed are served"
    )
    sandbox: Mode = Field(
        "auto",
        description="confine engines (no files, network or programs): auto (if the system can), required, or off",
    )

    max_queries: int = Field(256, ge=1, description="texts in one request")
    max_query_chars: int = Field(512, ge=1, description="characters of one text")
    max_k: int = Field(100, ge=1, description="hits for one text")
    max_body_bytes: int = Field(1 << 20, ge=1024)

    cache_bytes: int = Field(0, ge=0, description="memory for answers given before; 0 keeps none")

    max_waiting_queries: int = Field(4096, ge=1, description="texts that wait for the engine before 429")
    max_waiting_tokens: int = Field(131_072, ge=1, description="estimated tokens that wait for the engine before 429")
    max_waiting_seconds: float = Field(
        1, gt=0, description="texts that wait are no more than the engine lately answered in this time; beyond it 429"
    )
    max_batch_queries: int = Field(32, ge=1, description="texts the engine takes at once")
    max_batch_tokens: int = Field(4096, ge=1, description="estimated tokens the engine takes at once")
    max_batch_hits: int = Field(
        1024, ge=1, description="hits in one batch (texts × k); a text with a larger k is a batch of its own"
    )
    max_answer_bytes: int = Field(1 << 25, ge=1024, description="size of one answer; a larger one is refused with 422")
    max_piece_queries: int = Field(8, ge=1, description="texts of one request in a row before the next request's turn")
    batches_ahead: int = Field(1, ge=0, description="batches sent before the engine is free for them")

    deadline_seconds: float = Field(10, gt=0, description="a request older than this is answered 504")
    load_seconds: float = Field(
        900, gt=0, description="longest time an engine may take to open and warm a bundle, without its rests"
    )
    load_share: float = Field(
        0.1, gt=0, le=1, description="of the time, what a bundle may load in while another one is asked; 1: all of it"
    )
    silence_seconds: float = Field(10, gt=0, description="an engine this long at one batch is replaced")
    drain_seconds: float = Field(30, gt=0, description="longest time unfinished requests hold up a stop or a switch")
    receive_seconds: float = Field(10, gt=0, description="a request not complete after this is answered 408")
    send_seconds: float = Field(30, gt=0, description="a client that has not read on for this long is cut off")
    max_connections: int = Field(
        DEFAULT_CONNECTIONS, ge=1, description="open connections; beyond it an idle one makes room, else 503"
    )
    max_head_bytes: int = Field(32_768, ge=1024, description="a request's line and headers; beyond it 431")
    max_headers: int = Field(100, ge=10, description="headers and trailers of one request; beyond it 431")
    connection_bytes: int = Field(
        1 << 28,
        ge=1 << 24,
        description="memory for unanswered requests and unread answers; beyond it, stalled connections are closed",
    )
    keep_alive_seconds: int = Field(75, ge=1, description="an idle connection is closed after this")
    log_format: Form = Field("auto", description="json or text; auto is text on a terminal only")
    log_requests: Literal["all", "failures", "none"] = Field(
        "failures", description="requests with a line in the log; failures: those answered 5xx"
    )
    log_queries: bool = Field(False, description="whether the lines of requests show their texts")
    grace_seconds: float = Field(
        0, ge=0, description="after SIGTERM, not ready yet answering, until load balancers have noticed"
    )
    console: bool = Field(True, description="a browser that opens / gets the console")
    compare_seconds: float = Field(
        120, ge=0, description="a bundle opened for comparison is closed after this long unasked; 0: none is opened"
    )
    watch_seconds: float = Field(
        5, ge=0, description="between looks at the store's active bundle, which is served at once; 0: do not look"
    )
    keep_previous: bool = Field(False, description="keep the bundle before in memory, so that going back is instant")
    memory_check: bool = Field(True, description="refuse to load a bundle that does not fit into free memory")
    cgroups: Path = Field(GROUPS, description="where the container's limits are read")
    crashes: int = Field(5, ge=1, description="engines that may end in crash_seconds before the bundle is given up")
    crash_seconds: float = Field(60, gt=0, description="time in which ends of engines are counted")
    max_paused: int = Field(10_000, ge=1, description="labels that may be paused")
    provider: Literal["cpu", "cuda"] = Field("cpu", description="what runs the encoder: ONNX Runtime's name for it")
    threads: int | None = Field(
        None, ge=1, description="threads of an engine's encoder; by default the cores that the container may use"
    )
    search_threads: int | None = Field(None, ge=1, description="threads of its index; by default as many")
    lanes: int | None = Field(
        None, ge=1, le=64, description="batches it answers side by side; by default 2 of a transformer on several cores"
    )

    @field_validator("trusted_keys")
    @classmethod
    def _keys_are_keys(cls, written: str) -> str:
        try:
            return ",".join(trusted_keys(written))
        except BadInput as error:
            raise ValueError(str(error)) from error

    @field_validator("predict_key")
    @classmethod
    def _a_key_is_there(cls, written: SecretStr | None) -> SecretStr | None:
        text = written.get_secret_value() if written else ""
        if text and not _listed(text):
            raise ValueError("there is no key in it, so anybody might ask; unset it if that is meant")
        return written

    @field_validator("host")
    @classmethod
    def _no_host_is_the_default(cls, written: str) -> str:
        return written.strip() or "127.0.0.1"

    @field_validator("trusted_proxies")
    @classmethod
    def _proxies_are_addresses(cls, written: str) -> str:
        proxy_networks(written)
        return written

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_origins(cls, written: str) -> str:
        for origin in _listed(written):
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write them as https://shop.example, without a path")
        return written

    @field_validator("admin_key")
    @classmethod
    def _admin_key_is_strong(cls, written: SecretStr | None) -> SecretStr | None:
        text = written.get_secret_value() if written else ""
        return SecretStr(checked_admin_key(text)) if text else None

    @field_validator("admin_keys")
    @classmethod
    def _admin_keys_are_strong(cls, written: SecretStr | None) -> SecretStr | None:
        text = written.get_secret_value() if written else ""
        if text and not named_admin_keys(text):
            raise ValueError("there is no key in it; unset it if none is meant")
        return written

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_hosts(cls, written: str) -> str:
        AllowedHosts(_listed(written))
        return written

    @property
    def administrators(self) -> dict[str, str]:
        """Admin keys by name."""
        named = named_admin_keys(self.admin_keys.get_secret_value()) if self.admin_keys else {}
        return {**({SINGLE: self.admin_key.get_secret_value()} if self.admin_key else {}), **named}

    @property
    def predict_keys(self) -> list[str]:
        """Keys for /predict."""
        return _listed(self.predict_key.get_secret_value()) if self.predict_key else []

    @property
    def hosts(self) -> list[str]:
        """Allowed hosts; empty allows any."""
        return _listed(self.allowed_hosts)

    @property
    def origins(self) -> list[str]:
        """Allowed CORS origins."""
        return _listed(self.cors_origins)

    @property
    def burst(self) -> int:
        """Burst of the rate limit, in texts per caller."""
        return self.rate_burst or max(self.max_queries, math.ceil(self.rate_limit or 0))

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_waiting_queries < self.max_queries:
            raise ValueError(
                f"max_waiting_queries ({self.max_waiting_queries}) is below max_queries ({self.max_queries}), "
                "so the largest request could never be admitted"
            )
        if self.connection_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                f"connection_bytes ({self.connection_bytes}) is below twice max_body_bytes ({self.max_body_bytes}), "
                "so the largest request might never be received"
            )
        if self.rate_limit and self.burst < self.max_queries:
            raise ValueError(
                f"rate_burst ({self.burst}) is below max_queries ({self.max_queries}), "
                "so the largest request could never be admitted"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_different(self) -> Self:
        single = self.admin_key.get_secret_value() if self.admin_key else None
        named = named_admin_keys(self.admin_keys.get_secret_value()) if self.admin_keys else {}
        if single and SINGLE in named:
            raise ValueError(
                f"DIPTYCH_ADMIN_KEYS: the name {SINGLE} is that of DIPTYCH_ADMIN_KEY; choose another or unset that"
            )
        if single in named.values():
            raise ValueError("DIPTYCH_ADMIN_KEYS: one of its keys is DIPTYCH_ADMIN_KEY too; list each key once")
        if not set(self.predict_keys).isdisjoint(self.administrators.values()):
            raise ValueError(
                "DIPTYCH_PREDICT_KEY: one of its keys is an administrator's, so whoever asks could administer; "
                "use different keys"
            )
        return self

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Load the settings; given values (None: not given) take precedence over the environment. Raises BadInput."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            about = f"{PREFIX}{name.upper()}: " if name else ""
            raise BadInput(f"{about}{first['msg'].removeprefix('Value error, ')}") from error


def unheard(variables: Iterable[str]) -> list[str]:
    """A sentence for each variable with our prefix that is no setting: a limit that is misspelt is no limit."""
    known = sorted({name.upper() for name in Settings.model_fields} | OTHERS)
    sentences = []
    for variable in sorted(variables):
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            alike = get_close_matches(name, known, n=1, cutoff=0.75)
            meant = f" {PREFIX}{alike[0]} is one." if alike else ""
            sentences.append(f"{variable} is set and no setting, so nothing obeys it.{meant}")
    return sentences


def _listed(written: str) -> list[str]:
    return [one.strip() for one in written.split(",") if one.strip()]
