"""Options of an engine, passed as one JSON argument. This module has no slow imports."""

import json
from typing import NamedTuple, Self

LABEL_CACHE_BYTES = 32 << 20  # label JSON cached by an engine, see label_cache.py


class EngineOptions(NamedTuple):
    """Options for opening and serving a bundle in an engine."""

    low_priority: bool  # load at low priority
    provider: str  # "cpu" or "cuda"
    threads: int | None  # of the encoder; None: all cores
    search_threads: int | None  # of the index; None: as many as the encoder
    worker_threads: int | None  # batches answered in parallel; None: depends on the encoder
    largest_batch: int
    max_answer_bytes: int  # of one request
    trusted_keys: str  # comma-separated
    front_pid: int  # process id of the front; the engine ends with it
    sandbox: str  # "auto", "required" or "off", see retrieval/system/sandbox
    data_bytes: int  # limit of data memory
    file_bytes: int  # limit of a written file: the in-memory copy of the index
    shared: bool = False  # load the bundle once and fork engines that share its memory
    index_sockets: tuple[int, ...] = ()  # to the process that searches Milvus; empty if the index is in the bundle

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Parse the result of `to_json`."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the options as JSON."""
        return json.dumps(self._asdict())
