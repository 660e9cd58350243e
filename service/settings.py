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
from retrieval.milvus import settings as milvus
from retrieval.milvus.settings import DEFAULT_PREFIX, DEFAULT_SECONDS, DEFAULT_WAIT_SECONDS, MAX_SECONDS
from retrieval.system.limits import GROUPS
from retrieval.system.sandbox import Mode
from service.access.allowed_hosts import AllowedHosts
from service.access.client_address import proxy_networks
from service.access.key_settings import SINGLE, checked_admin_key, named_admin_keys
from service.file_limits import DEFAULT_CONNECTIONS
from service.observe.logs import Form

PREFIX = "DIPTYCH_"
OTHER_COMMANDS = {"CACHE", "SIGNING_KEY"}  # variables of other commands
ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9A-Fa-f:.]+\](:\d{1,5})?")


class Settings(BaseSettings):
    """Settings of `diptych serve`. Each field is the environment variable DIPTYCH_<FIELD>; options override them."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    store: Path = Field(description="folder or URL of the bundle store, written by `diptych export`")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0: any free port")
    admin_key: SecretStr | None = Field(
        None, description="key of the admin routes, at least 16 characters; they are off without a key"
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

    predict_key: SecretStr | None = Field(
        None, description="keys of /predict and /about, comma-separated; unset: no key is needed"
    )
    rate_limit: float | None = Field(
        None, gt=0, description="texts per second per key, or per address when no key is needed; unset: unlimited"
    )
    rate_burst: int | None = Field(
        None,
        ge=1,
        description="burst of the rate limit, in texts; default: the texts of one second, at least max_queries",
    )
    trusted_proxies: str = Field(
        "", description="trusted sources of X-Forwarded-For: addresses, networks, comma-separated; unset: none"
    )
    cors_origins: str = Field(
        "", description="origins whose pages may use /predict, comma-separated; * for all; unset: none"
    )

    trusted_keys: str = Field(
        "", description="public keys, comma-separated; if set, only bundles signed by one of them are served"
    )
    sandbox: Mode = Field(
        "auto",
        description="confine engines (no files, network or programs): auto (if the system can), required, or off",
    )

    max_queries: int = Field(256, ge=1, description="texts per request")
    max_query_chars: int = Field(512, ge=1, description="characters per text")
    max_k: int = Field(100, ge=1, description="hits per text")
    max_body_bytes: int = Field(1 << 20, ge=1024, description="bytes per request body")

    cache_bytes: int = Field(0, ge=0, description="size of the response cache; 0: off")

    max_waiting_queries: int = Field(4096, ge=1, description="texts that wait for the engine; beyond it 429")
    max_waiting_tokens: int = Field(
        131_072, ge=1, description="estimated tokens that wait for the engine; beyond it 429"
    )
    max_waiting_seconds: float = Field(
        1, gt=0, description="limit of the queue in seconds, at the engine's measured throughput; beyond it 429"
    )
    max_batch_queries: int = Field(32, ge=1, description="texts per batch")
    max_batch_tokens: int = Field(4096, ge=1, description="estimated tokens per batch")
    max_batch_hits: int = Field(
        1024, ge=1, description="hits per batch (texts × k); a text with a larger k is sent alone"
    )
    max_answer_bytes: int = Field(1 << 25, ge=1024, description="size of one answer; a larger one is refused with 422")
    max_slice_queries: int = Field(
        8, ge=1, description="texts of one request in a batch, before other requests get their turn"
    )
    batches_ahead: int = Field(1, ge=0, description="batches sent to the engine before it is free")

    deadline_seconds: float = Field(10, gt=0, description="time to answer a request; beyond it 504")
    load_seconds: float = Field(
        900, gt=0, description="time for an engine to open and warm a bundle, without the time that it is throttled"
    )
    load_share: float = Field(
        0.1, gt=0, le=1, description="fraction of the time in which a bundle loads while another one serves; 1: all"
    )
    engine_timeout_seconds: float = Field(
        10, gt=0, description="time for an engine to answer a batch; beyond it the engine is replaced"
    )
    drain_seconds: float = Field(30, gt=0, description="longest wait for unfinished requests at a stop or a switch")
    receive_seconds: float = Field(10, gt=0, description="time to receive a whole request; beyond it 408")
    send_seconds: float = Field(
        30, gt=0, description="a connection is closed if its client reads nothing of a response for this time"
    )
    max_connections: int = Field(
        DEFAULT_CONNECTIONS,
        ge=1,
        description="open connections; beyond it an idle one is closed, or 503 if there is none",
    )
    max_head_bytes: int = Field(32_768, ge=1024, description="bytes of a request line and headers; beyond it 431")
    max_headers: int = Field(100, ge=10, description="headers and trailers per request; beyond it 431")
    connection_bytes: int = Field(
        1 << 28,
        ge=1 << 24,
        description="memory for unanswered requests and unread answers; beyond it, stalled connections are closed",
    )
    keep_alive_seconds: int = Field(75, ge=1, description="an idle connection is closed after this time")
    log_format: Form = Field("auto", description="json or text; auto: text on a terminal, else json")
    log_requests: Literal["all", "failures", "none"] = Field(
        "failures", description="which requests are logged; failures: those answered 5xx"
    )
    log_queries: bool = Field(False, description="log the texts of requests")
    grace_seconds: float = Field(
        0,
        ge=0,
        description="time after SIGTERM in which the service is not ready but still answers, for load balancers",
    )
    console: bool = Field(True, description="serve the console to browsers at /")
    compare_seconds: float = Field(
        120, ge=0, description="a bundle opened for comparison is closed after this idle time; 0: comparison is off"
    )
    watch_seconds: float = Field(
        5, ge=0, description="interval of the check for a new active bundle in the store, which is then served; 0: off"
    )
    keep_previous: bool = Field(False, description="keep the previous bundle in memory, for an instant rollback")
    memory_check: bool = Field(True, description="refuse to load a bundle that does not fit into free memory")
    cgroups: Path = Field(GROUPS, description="folder of the cgroup limits of the container")
    crashes: int = Field(
        5, ge=1, description="engine crashes within crash_seconds before the service falls back to the previous bundle"
    )
    crash_seconds: float = Field(60, gt=0, description="period in which engine crashes are counted")
    max_paused: int = Field(10_000, ge=1, description="labels that may be paused")
    provider: Literal["cpu", "cuda"] = Field("cpu", description="ONNX Runtime execution provider of the encoder")
    engines: int = Field(
        1,
        ge=1,
        le=64,
        description="processes that answer requests from one bundle in shared memory, on several cores; with more than "
        "one, provider must be cpu",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="threads of an engine's encoder; default: the cores available to the container, divided by engines",
    )
    search_threads: int | None = Field(None, ge=1, description="threads of an engine's index; default: as threads")
    worker_threads: int | None = Field(
        None,
        ge=1,
        le=64,
        description="batches that an engine answers in parallel; default: 2 for a transformer on several cores, else 1",
    )

    milvus_url: str = Field(
        "", description="address of the Milvus server, for bundles whose index is there, such as http://milvus:19530"
    )
    milvus_token: SecretStr | None = Field(None, description="user:password or API key of the Milvus server")
    milvus_prefix: str = Field(
        DEFAULT_PREFIX, description="beginning of the names of collections and of the alias in Milvus; one per store"
    )
    milvus_seconds: float = Field(
        DEFAULT_SECONDS, gt=0, le=MAX_SECONDS, description="time limit of one search in Milvus"
    )
    milvus_wait_seconds: float = Field(
        DEFAULT_WAIT_SECONDS,
        ge=0,
        le=MAX_SECONDS,
        description="a search waits this long for a Milvus server that is away; then 503 at once until it is back",
    )

    @field_validator("trusted_keys")
    @classmethod
    def _check_trusted_keys(cls, value: str) -> str:
        try:
            return ",".join(trusted_keys(value))
        except BadInput as error:
            raise ValueError(str(error)) from error

    @field_validator("predict_key")
    @classmethod
    def _check_predict_key(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if text and not _split(text):
            raise ValueError("it has no key; set one, or unset the variable to allow requests without a key")
        return value

    @field_validator("host")
    @classmethod
    def _default_host(cls, value: str) -> str:
        return value.strip() or "127.0.0.1"

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        proxy_networks(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: str) -> str:
        for origin in _split(value):
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin; write them as https://shop.example, without a path")
        return value

    @field_validator("admin_key")
    @classmethod
    def _check_admin_key(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        return SecretStr(checked_admin_key(text)) if text else None

    @field_validator("admin_keys")
    @classmethod
    def _check_admin_keys(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if text and not named_admin_keys(text):
            raise ValueError("there is no key in it; unset it if none is meant")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: str) -> str:
        AllowedHosts(_split(value))
        return value

    @property
    def administrators(self) -> dict[str, str]:
        """Admin keys by name."""
        named = named_admin_keys(self.admin_keys.get_secret_value()) if self.admin_keys else {}
        return {**({SINGLE: self.admin_key.get_secret_value()} if self.admin_key else {}), **named}

    @property
    def predict_keys(self) -> list[str]:
        """Keys for /predict."""
        return _split(self.predict_key.get_secret_value()) if self.predict_key else []

    @property
    def hosts(self) -> list[str]:
        """Allowed hosts; empty allows any."""
        return _split(self.allowed_hosts)

    @property
    def origins(self) -> list[str]:
        """Allowed CORS origins."""
        return _split(self.cors_origins)

    @property
    def burst(self) -> int:
        """Burst of the rate limit, in texts per caller."""
        return self.rate_burst or max(self.max_queries, math.ceil(self.rate_limit or 0))

    @property
    def milvus_variables(self) -> dict[str, str]:
        """Environment variables of the process that searches Milvus; empty without a server."""
        if not self.milvus_url:
            return {}
        token = self.milvus_token.get_secret_value() if self.milvus_token else ""
        return {
            milvus.URL: self.milvus_url, milvus.TOKEN: token, milvus.PREFIX: self.milvus_prefix,
            milvus.SECONDS: str(self.milvus_seconds), milvus.WAIT_SECONDS: str(self.milvus_wait_seconds),
        }  # fmt: skip

    @property
    def batch_seconds(self) -> float:
        """Time for an engine to answer a batch, with the time that its search may wait for Milvus."""
        return self.engine_timeout_seconds + milvus.longest_wait(self.milvus_variables)

    @model_validator(mode="after")
    def _check_that_largest_request_fits(self) -> Self:
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
    def _check_that_engines_can_share(self) -> Self:
        if self.engines > 1 and self.provider != "cpu":
            raise ValueError(
                f"DIPTYCH_ENGINES: {self.engines} engines cannot share a bundle with provider {self.provider!r}; "
                "use 1, or provider cpu"
            )
        return self

    @model_validator(mode="after")
    def _check_that_keys_differ(self) -> Self:
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
                "DIPTYCH_PREDICT_KEY: one of its keys is an administrator's, so clients could administer the service; "
                "use different keys"
            )
        return self

    @classmethod
    def load(cls, **options: Any) -> Self:
        """Load the settings. Options other than None override the environment. Raises BadInput."""
        try:
            return cls(**{name: value for name, value in options.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            about = f"{PREFIX}{name.upper()}: " if name else ""
            raise BadInput(f"{about}{first['msg'].removeprefix('Value error, ')}") from error


def unknown_variables(variables: Iterable[str]) -> list[str]:
    """Return a warning for each variable with the prefix that is not a setting: a misspelt limit has no effect."""
    known = sorted({name.upper() for name in Settings.model_fields} | OTHER_COMMANDS)
    warnings = []
    for variable in sorted(variables):
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            similar = get_close_matches(name, known, n=1, cutoff=0.75)
            hint = f" Did you mean {PREFIX}{similar[0]}?" if similar else ""
            warnings.append(f"{variable} is not a known setting; ignored.{hint}")
    return warnings


def _split(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]
