"""Search for shards of queries in the workers of a Ray cluster, or of this machine.

Each worker opens the bundle once. This process reads the queries and writes the shards, so workers need no access to
either. A worker that dies is started again, up to RESTARTS times, and its shards are searched again.
"""

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: Ray reports statistics to its makers by default

import pyarrow as pa
import ray
import ray.exceptions

from retrieval.errors import BadInput, DiptychError, InternalError, one_line
from retrieval.offline.query_files import QueryShard
from retrieval.offline.shard_search import SearchOptions, Write, manifest_hash, search_shard
from retrieval.retriever import Retriever
from retrieval.system.stopping import SIGNALS
from retrieval.system.urls import as_url

HOST_AND_PORT = re.compile(r"(?:ray://)?([^/:]+):([0-9]{1,5})")
CONNECT_SECONDS = 10.0
RESTARTS = 3
SHARDS_PER_WORKER = 2  # one is searched while the other is on its way


class Worker:
    """Searches shards in a process of the cluster."""

    def __init__(self, bundle: str, threads: int, trusted: Sequence[str], paused: Sequence[str]) -> None:
        from retrieval.open import open_bundle

        self._retriever = open_bundle(bundle, threads=threads, trusted=trusted, paused=paused)

    def manifest(self) -> str:
        """Return the hash of the manifest of the open bundle."""
        return manifest_hash(self._retriever)

    def search(self, shard: QueryShard, options: SearchOptions) -> pa.Table:
        """Return the matches of a shard's queries."""
        return search_shard(self._retriever, shard, options)


class RayEngine:
    """Searches with `workers` workers of `threads` threads each, on the cluster `address`; None: on this machine.

    The bundle is opened in every worker: `bundle` is a URL, or a path that all machines of the cluster have. Raises
    BadInput if the cluster cannot be reached or a worker cannot open the same bundle.
    """

    def __init__(
        self,
        retriever: Retriever,
        bundle: str,
        workers: int,
        *,
        threads: int = 1,
        address: str | None = None,
        trusted: Sequence[str] = (),
    ) -> None:
        self.concurrent_shards = SHARDS_PER_WORKER * workers
        path = bundle if as_url(bundle) else str(retriever.folder.resolve())
        with _cluster_errors(address):
            _connect(address, workers * threads)
            actor: Any = ray.remote(num_cpus=threads, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Worker)
            self._workers: list[Any] = [
                actor.remote(path, threads, list(trusted), sorted(retriever.paused)) for _ in range(workers)
            ]
            manifests = set(ray.get([worker.manifest.remote() for worker in self._workers]))
        if manifests != {manifest_hash(retriever)}:
            self.close()
            raise BadInput(
                f"the workers opened another bundle than {retriever.name!r} at {bundle}. Run the command again."
            )
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for worker in self._workers * SHARDS_PER_WORKER:
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(self.concurrent_shards)

    def submit(self, shard: QueryShard, options: SearchOptions, write: Write) -> Future[None]:
        """Search for the queries of a shard in a worker, and call `write` with their matches in a thread."""
        return self._pool.submit(self._search, shard, options, write)

    def close(self) -> None:
        """End the workers, and leave the cluster."""
        for worker in self._workers:
            ray.kill(worker)
        if hasattr(self, "_pool"):
            self._pool.shutdown(cancel_futures=True)
        ray.shutdown()

    def _search(self, shard: QueryShard, options: SearchOptions, write: Write) -> None:
        worker = self._idle.get()
        try:
            with _cluster_errors(None):
                matches = ray.get(worker.search.remote(shard, options))
        finally:
            self._idle.put(worker)
        write(matches)


def _connect(address: str | None, cpus: int) -> None:
    """Connect to the cluster, or start one of `cpus` CPUs on this machine; keep this process's signal handlers."""
    if match := HOST_AND_PORT.fullmatch(address or ""):
        # Ray itself would try for minutes.
        socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
    finally:
        for number, handler in handlers.items():  # Ray's handler would end this process without an orderly stop
            signal.signal(number, handler)


@contextmanager
def _cluster_errors(address: str | None) -> Iterator[None]:
    """Raise an error of Diptych instead of one of Ray, and the error of a worker as it was raised there."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DiptychError):
            raise error.cause from None
        raise InternalError(f"a worker failed: {one_line(error.cause)}") from error
    except ray.exceptions.RayActorError as error:
        raise BadInput(
            f"a worker ended {RESTARTS + 1} times or could not start ({_last_line(error)}). Rerun the same command to "
            "resume, with fewer --workers if memory is short."
        ) from error
    except (OSError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        raise BadInput(
            f"the Ray cluster {address} cannot be reached ({one_line(error)}). Check --ray-address."
        ) from error


def _last_line(error: BaseException) -> str:
    return one_line(next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__))
