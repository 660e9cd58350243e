"""What a run is asked to do, within limits: nothing here goes on for ever or fills the memory."""

import itertools
import json
import re
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadtest.arrivals import Arrivals
from retrieval.errors import BadInput

MOST_REQUESTS = 10_000_000
MOST_QUERIES = 100_000  # of a file
MOST_RATE = 50_000
UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
WORDS = [
    "shoes", "running", "winter", "light", "kitchen", "garden", "phone", "travel", "summer", "paper", "coffee", "music",
    "family", "history", "science", "health", "school", "market", "camera", "bicycle", "insurance", "recipe", "weather",
    "hotel", "ticket", "jacket", "mountain", "battery", "office", "wooden",
]  # fmt: skip


class Plan(BaseModel):
    """One run: requests a second, for how many seconds, and what bounds it. Times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(ge=0.1, le=MOST_RATE)
    duration: float = Field(ge=0.1, le=3600)
    arrivals: Arrivals = "poisson"
    k: int = Field(10, ge=1, le=100_000)
    timeout: float = Field(15, ge=0.01, le=300)
    connections: int = Field(1024, ge=1, le=20_000)
    max_lag: float | None = Field(None, gt=0, le=3600)
    switch_every: float | None = Field(None, ge=0.1, le=3600)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (requests := self.rate * self.duration) > MOST_REQUESTS:
            raise ValueError(
                f"{self.rate:g} requests a second for {self.duration:g} s are {requests:,.0f}; "
                f"the most is {MOST_REQUESTS:,}"
            )
        return self

    @classmethod
    def of(cls, **given: Any) -> Self:
        """A checked plan. Raises BadInput with the option, its value and its limit."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise BadInput(_sentence(error)) from error

    def lag_limit(self, p99: float) -> float:
        """How late the generator may send its slowest hundredth, when answers' 99th percentile is `p99`.

        A quarter of that figure at most may be the generator's own; a millisecond is what any busy machine costs.
        """
        return self.max_lag or max(p99 / 4, 0.001)


def seconds(written: str, option: str) -> float:
    """A duration such as 500ms, 30s, 5m; seconds without a unit. Raises BadInput."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", written.strip())
    if not read or read[2] not in UNITS:
        raise BadInput(f"{option} is {written!r}; give a duration such as 500ms, 30s or 5m.")
    return float(read[1]) * UNITS[read[2]]


def bodies(path: Path | None, column: str | None, k: int) -> list[bytes]:
    """A request's body for each query of a file (as `diptych predict` reads it), else for 4,060 groups of plain words.

    Raises BadInput when the file has no query. Empty queries are left out, and what comes after the first 100,000.
    """
    if path is None:
        texts = [" ".join(words) for words in itertools.combinations(WORDS, 3)]
        texts = texts[::7] + [text for place, text in enumerate(texts) if place % 7]  # neighbours share two words
    else:
        from retrieval.offline.query_files import Queries
        from retrieval.system.terminal import echo

        queries = Queries(path, column)
        texts, _ = queries.first(MOST_QUERIES, truths=False)
        if queries.account is not None:
            echo("\n".join(queries.account.report("sent")), err=True)  # standard output is the report's
    return [json.dumps({"queries": [text], "k": k}).encode() for text in texts]


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    said, context = first["msg"].removeprefix("Value error, "), first.get("ctx", {})
    if not first["loc"]:
        return f"{said}."
    option = f"--{str(first['loc'][0]).replace('_', '-')}" if first["loc"][0] != "k" else "-k"
    bounds = {"ge": "the least is {}", "gt": "it must be above {}", "le": "the most is {}"}
    for bound, words in bounds.items():
        if bound in context:
            return f"{option} is {first['input']:g}; {words.format(f'{context[bound]:,g}')}."
    return f"{option} is {first['input']!r}; {said[:1].lower()}{said[1:]}."
