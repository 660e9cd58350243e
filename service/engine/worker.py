"""Run the engine process: open one bundle and answer the batches that arrive on one pipe.

It is a separate process because loading an index holds the GIL for seconds, because a crash in native code then costs
one engine and not the service, and because its memory returns to the system when it ends. The front starts it with
`service.engine.start`; it ends when its pipe is closed.
"""

import faulthandler
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from retrieval import Retriever
from retrieval import open_bundle as open_retriever
from retrieval.bundle.signatures import trusted_keys
from retrieval.errors import BundleError, DiptychError
from retrieval.system.low_priority import at_low_priority, directly
from service.engine.batch_searcher import BatchSearcher
from service.engine.filter_values import list_attributes
from service.engine.gc_tuning import freeze_gc
from service.engine.options import EngineOptions
from service.engine.protocol import (
    BundleInfo,
    FilterAttribute,
    FrameKind,
    decode_batch,
    decode_paused,
    encode_answers,
    encode_frame,
    encode_info,
    encode_paused,
    read_frame,
)
from service.engine.worker_threads import SharedPipe, count_threads, run_in_threads
from service.observe import logs

LOG = logging.getLogger("diptych.engine")
Result = TypeVar("Result")
MILVUS_THREADS = 4


class LoadedBundle(NamedTuple):
    """A bundle that is loaded, and may not be started yet."""

    retriever: Retriever
    searcher: BatchSearcher
    attributes: list[FilterAttribute]
    seconds: float  # that loading took


def load_bundle(folder: Path, options: EngineOptions, deferred: bool = False) -> LoadedBundle:
    """Verify and load a bundle; with `deferred` without starting threads.

    Raises BundleError, and BadInput for a provider that is not available.
    """
    started, run = time.perf_counter(), at_low_priority if options.low_priority else directly
    retriever = open_retriever(
        folder, threads=options.threads, search_threads=options.search_threads, provider=options.provider,
        trusted=trusted_keys(options.trusted_keys), low_priority=options.low_priority, paused=(), deferred=deferred,
        index_sockets=options.index_sockets,
    )  # fmt: skip
    searcher = BatchSearcher(retriever, options.max_answer_bytes)
    attributes = run(lambda: list_attributes(retriever.labels.table))
    return LoadedBundle(retriever, searcher, attributes, time.perf_counter() - started)


def check_bundle(loaded: LoadedBundle, options: EngineOptions) -> tuple[BatchSearcher, BundleInfo]:
    """Start a loaded bundle's threads, warm it, and check its golden answers. Raises BundleError and BadInput."""
    started, run = time.perf_counter(), at_low_priority if options.low_priority else directly
    retriever, searcher = loaded.retriever, loaded.searcher
    retriever.start()
    run(lambda: searcher.warm(options.largest_batch))
    golden = run(retriever.check_golden)
    if not golden.passed:
        raise BundleError(
            f"{retriever.name} does not give its golden answers here: overlap@10 is {golden.overlap_at_10:.3f} and a "
            f"score is off by {golden.score_deviation:.2g}. Export it on this kind of machine."
        )
    model = retriever.manifest.model
    return searcher, BundleInfo(
        labels=len(retriever.labels),
        dim=retriever.dim,
        bytes_per_token=model.bytes_per_token,
        max_tokens=model.max_tokens,
        # On a CPU the encoder groups texts of similar length, and the padding of a static encoder costs nothing.
        padded=model.encoder == "transformer" and options.provider != "cpu",
        worker_threads=options.worker_threads or _count_threads(options, model.encoder),
        seconds=loaded.seconds + time.perf_counter() - started,
        weight=retriever.manifest.classifier_weight,
        attributes=loaded.attributes,
        query_identity=model.query_identity,
        memory_weight=None if retriever.manifest.memory is None else retriever.memory_weight,
        fixed_weight=not (model.dual_dim and model.classifier_dim),
    )


def _count_threads(options: EngineOptions, encoder: str) -> int:
    if options.index_sockets:  # a thread mostly waits for Milvus
        return MILVUS_THREADS
    return count_threads(encoder, options.provider, options.threads)


def serve(searcher: BatchSearcher, pipe: SharedPipe) -> None:
    """Answer batches in one worker thread until the front closes the pipe."""
    while True:
        with pipe.read_lock:
            received = read_frame(pipe)
            if received is None:
                return
            kind, payload = received
            if kind is FrameKind.PAUSED:  # under the read lock: every batch that is read after it, by any thread, obeys
                pipe.send(encode_paused(searcher.pause(decode_paused(payload))))
                continue
        if kind is not FrameKind.BATCH:
            raise ValueError(f"the front sent a frame of kind {kind.name}")
        for frame in encode_answers(searcher.answer(decode_batch(payload))):
            pipe.send(frame)


def prepare_process() -> None:
    """Set up logs and signals."""
    logs.configure(cast(logs.Form, os.environ.get(logs.FORMAT, "auto")))
    faulthandler.enable()
    # A signal may reach the whole group, but the front needs answers while it drains.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def or_failed(work: Callable[[], Result], pipe: socket.socket, folder: str) -> Result | None:
    """Return the result of `work`; send its exception as a FAILED frame and return None."""
    try:
        return work()
    except DiptychError as error:
        reason = str(error)
    except Exception as error:
        LOG.exception("%s could not be opened", folder)
        reason = f"{Path(folder).name} cannot be opened ({type(error).__name__})."
    pipe.sendall(encode_frame(FrameKind.FAILED, reason.encode()))
    return None


def answer(pipe: socket.socket, folder: str, opening: Callable[[], tuple[BatchSearcher, BundleInfo]]) -> int:
    """Open the bundle, report READY or FAILED, and answer until the front closes the pipe. Return the exit code."""
    opened = or_failed(opening, pipe, folder)
    if opened is None:
        return 1
    searcher, info = opened
    freeze_gc()
    try:
        pipe.sendall(encode_info(info))
        shared = SharedPipe(pipe, info.worker_threads)
        run_in_threads(info.worker_threads, lambda: serve(searcher, shared), shared.shutdown)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the front has ended
    return 0


def main(descriptor: int, folder: str, options: EngineOptions) -> int:
    """Run an engine that loads its bundle itself; return the exit code."""
    prepare_process()
    pipe = socket.socket(fileno=descriptor)
    return answer(pipe, folder, lambda: check_bundle(load_bundle(Path(folder), options), options))
