"""Settings of a run, with limits on its length, rate and memory."""

import itertools
import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.arrivals import Arrivals
from retrieval.errors import BadInput

MAX_REQUESTS = 10_000_000
MAX_RATE = 50_000
MAX_QUERIES = 100_000  # read from a file
UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
WORDS = [
    "shoes", "running", "winter", "light", "kitchen", "garden", "phone", "travel", "summer", "paper", "coffee", "music",
    "family", "history", "science", "health", "school", "market", "camera", "bicycle", "insurance", "recipe", "weather",
    "hotel", "ticket", "jacket", "mountain", "battery", "office", "wooden",
]  # fmt: skip


class Plan(BaseModel):
    """One run at one rate, in requests per second. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(ge=0.1, le=MAX_RATE)
    duration: float = Field(ge=0.1, le=3600)
    arrivals: Arrivals = "poisson"
    k: int = Field(10, ge=1, le=100_000)
    timeout: float = Field(15, ge=0.01, le=300)
    connections: int = Field(1024, ge=1, le=20_000)
    max_lag: float | None = Field(None, gt=0, le=3600)
    switch_every: float | None = Field(None, ge=0.1, le=3600)

    @model_validator(mode="after")
    def _limit_requests(self) -> Self:
        if (requests := self.rate * self.duration) > MAX_REQUESTS:
            raise ValueError(
                f"{self.rate:g} requests per second for {self.duration:g} s are {requests:,.0f} requests; "
                f"the limit is {MAX_REQUESTS:,}"
            )
        return self

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Validate the options. Raises BadInput with the option, its value and its limit."""
        try:
            return cls(**options)
        except ValidationError as error:
            raise BadInput(_message(error)) from error

    def lag_limit(self, p99: float) -> float:
        """Return the largest valid p99 of the generator's lag, for answers with this p99.

        Lag is part of every latency: at most a quarter of the p99 may come from it. A millisecond is always allowed.
        """
        return self.max_lag or max(p99 / 4, 0.001)


def parse_duration(text: str, option: str) -> float:
    """Parse a duration such as 500ms, 30s or 5m; without a unit, seconds. Raises BadInput."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip())
    if not match or match[2] not in UNITS:
        raise BadInput(f"{option} is {text!r}; give a duration such as 500ms, 30s or 5m.")
    return float(match[1]) * UNITS[match[2]]


def request_bodies(path: Path | None, column: str | None, k: int) -> list[bytes]:
    """Build a request body per query of a file that `diptych predict` can read; without one, 4,060 groups of words.

    Skips empty queries and those after the first 100,000. Raises BadInput if the file has no query.
    """
    if path is None:
        texts = [" ".join(words) for words in itertools.combinations(WORDS, 3)]
        # neighbours in the list share two words: start with every seventh
        texts = texts[::7] + [text for place, text in enumerate(texts) if place % 7]
    else:
        from retrieval.offline.query_files import Queries
        from retrieval.system.terminal import echo

        queries = Queries(path, column)
        texts, _ = queries.first(MAX_QUERIES, truths=False)
        if queries.account is not None:
            echo("\n".join(queries.account.report("sent")), err=True)  # standard output is for the report
    return [json.dumps({"queries": [text], "k": k}).encode() for text in texts]


def _message(error: ValidationError) -> str:
    first = error.errors()[0]
    text, context = first["msg"].removeprefix("Value error, "), first.get("ctx", {})
    if not first["loc"]:
        return f"{text}."
    option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"][0] != "k" else "-k"
    bounds = {"ge": "the minimum is {}", "gt": "it must be above {}", "le": "the maximum is {}"}
    for bound, words in bounds.items():
        if bound in context:
            return f"{option} is {first['input']:g}; {words.format(f'{context[bound]:,g}')}."
    return f"{option} is {first['input']!r}; {text[:1].lower()}{text[1:]}."
