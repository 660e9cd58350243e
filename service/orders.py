"""What a front tells an engine when it starts it: one argument, in JSON. It imports nothing that takes time."""

import json
from typing import NamedTuple, Self


class Orders(NamedTuple):
    """How an engine is to open its bundle, and to work."""

    behind: bool  # load when nobody else wants the processor
    provider: str  # "cpu" or "cuda"
    threads: int | None  # of the encoder; None: all cores
    search_threads: int | None  # of the index; None: as many as of the encoder
    lanes: int | None  # batches answered side by side; None: as many as suit the encoder
    largest_batch: int
    max_answer_bytes: int  # of one request
    trusted_keys: str  # by commas
    front: int  # process id of the front: the engine does not outlive it
    sandbox: str  # "auto", "required" or "off", see retrieval/sandbox
    data_bytes: int  # of memory that it may take
    file_bytes: int  # of a file that it may write: its copy of the index, in memory

    @classmethod
    def read(cls, written: str) -> Self:
        return cls(**json.loads(written))

    def written(self) -> str:
        return json.dumps(self._asdict())
