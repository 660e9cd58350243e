"""Environment → typed settings: every limit of the service stands here, once."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from retrieval.errors import BadInput
from retrieval.signatures import trusted_keys

PREFIX = "DIPTYCH_"


class Settings(BaseSettings):
    """What `diptych serve` obeys: a field is the environment variable DIPTYCH_<FIELD>; the command line comes first."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    store: Path = Field(description="folder of bundles, written by `diptych export`")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65_535, description="0 takes any free port")
    admin_key: SecretStr | None = Field(None, description="key of the admin routes; they are off without one")

    trusted_keys: str = Field(
        "", description="keys, by commas; with any, only bundles that one of them signed are served"
    )

    max_queries: int = Field(256, ge=1, description="texts in one request")
    max_query_chars: int = Field(512, ge=1, description="characters of one text")
    max_k: int = Field(100, ge=1, description="hits for one text")
    max_body_bytes: int = Field(1 << 20, ge=1024)

    max_waiting_queries: int = Field(4096, ge=1, description="texts that wait for the engine before 429")
    max_waiting_tokens: int = Field(131_072, ge=1, description="estimated tokens that wait for the engine before 429")
    max_batch_queries: int = Field(32, ge=1, description="texts the engine takes at once")
    max_batch_tokens: int = Field(4096, ge=1, description="estimated tokens the engine takes at once")
    max_piece_queries: int = Field(8, ge=1, description="texts of one request in a row before the next request's turn")
    batches_in_flight: int = Field(2, ge=1, description="batches sent before the first is answered")

    deadline_seconds: float = Field(10, gt=0, description="a request older than this is answered 504")
    load_seconds: float = Field(900, gt=0, description="longest time an engine may take to open and warm a bundle")
    silence_seconds: float = Field(10, gt=0, description="an engine this long at one batch is replaced")
    drain_seconds: float = Field(30, gt=0, description="longest time unfinished requests hold up a stop or a switch")
    keep_alive_seconds: int = Field(75, ge=1, description="an idle connection is closed after this")
    threads: int | None = Field(None, ge=1, description="threads of one engine; the cores it may use by default")

    @field_validator("trusted_keys")
    @classmethod
    def _keys_are_keys(cls, written: str) -> str:
        try:
            return ",".join(trusted_keys(written))
        except BadInput as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _one_request_fits(self) -> Self:
        if self.max_waiting_queries < self.max_queries:
            raise ValueError(
                f"max_waiting_queries ({self.max_waiting_queries}) is below max_queries ({self.max_queries}), "
                "so the largest request could never be admitted"
            )
        return self

    @classmethod
    def load(cls, **given: Any) -> Self:
        """The caller's values (None: not given) before the environment's. Raises BadInput."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            about = f"{PREFIX}{name.upper()}: " if name else ""
            raise BadInput(f"{about}{first['msg'].removeprefix('Value error, ')}") from error
