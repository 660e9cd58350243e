"""Search Milvus for a process that may not open connections: `python -m retrieval.milvus.host COLLECTION FD …`.

Reads the settings from the environment, answers one question at a time on each socket, and ends when the sockets are
closed. The process that opens a bundle has neither the network nor the server's token.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from retrieval.errors import DiptychError, IndexUnavailable
from retrieval.milvus.pipe import CONNECTIONS, read_frame, send_frame
from retrieval.milvus.settings import VARIABLES, milvus_settings
from retrieval.milvus.source import DirectSource
from retrieval.system.sandbox import child_environment

MAX_K = 16_384


class Host(NamedTuple):
    """A running host process, and the descriptors for the process that searches; close both after starting that one."""

    process: subprocess.Popen[bytes]
    sockets: tuple[socket.socket, ...]

    @property
    def descriptors(self) -> list[int]:
        """Return the descriptors of the sockets."""
        return [pipe.fileno() for pipe in self.sockets]

    def close_sockets(self) -> None:
        """Close this process's copies of the sockets, so that the host ends with the process that searches."""
        for pipe in self.sockets:
            pipe.close()

    def close(self) -> None:
        """Close the sockets and end the host. Call it when the process that searches has ended."""
        self.close_sockets()
        self.process.kill()
        self.process.wait()


def start_host(collection: str, connections: int = CONNECTIONS, environment: Mapping[str, str] = os.environ) -> Host:
    """Start a host for a collection of the server in the environment. Raises BadInput and OSError."""
    milvus_settings(environment)  # an error is reported here, not by the child
    pairs = [socket.socketpair() for _ in range(connections)]
    try:
        theirs = [pair[1].fileno() for pair in pairs]
        command = [sys.executable, "-P", "-m", "retrieval.milvus.host", collection, *map(str, theirs)]
        passed = child_environment(environment) | {name: environment[name] for name in VARIABLES if name in environment}
        # In a separate process group: Ctrl-C in a terminal must not end it before the engine.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=passed, pass_fds=theirs, process_group=0)
    except BaseException:
        for ours, _ in pairs:
            ours.close()
        raise
    finally:
        for _, other in pairs:
            other.close()
    return Host(process, tuple(ours for ours, _ in pairs))


def answer_all(source: DirectSource, pipe: socket.socket) -> None:
    """Answer the questions of one socket until it is closed."""
    with pipe, suppress(BrokenPipeError, ConnectionResetError):
        while (question := read_frame(pipe)) is not None:
            send_frame(pipe, *answer(source, *question))


def answer(source: DirectSource, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the answer to one question: its head and its arrays."""
    try:
        if head.get("count"):
            return {"count": source.count()}, b""
        k, shape = int(head["k"]), (int(head["queries"]), int(head["width"]))
        if not 1 <= k <= MAX_K:
            raise ValueError(f"a search for {k} candidates")
        query_QW = np.frombuffer(body, np.float32).reshape(shape)
        rows_QK, scores_QK = source.search(query_QW, k, int(head["ef"]))
    except IndexUnavailable as error:
        return {"unavailable": str(error)}, b""
    except DiptychError as error:
        return {"refused": str(error)}, b""
    return {}, rows_QK.astype(np.int64).tobytes() + scores_QK.astype(np.float32).tobytes()


def main(arguments: Sequence[str]) -> None:
    """Answer on all sockets until they are closed."""
    collection, *descriptors = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the process that searches
    pipes = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    source = DirectSource(milvus_settings(), collection)
    with ThreadPoolExecutor(len(pipes)) as pool:
        for done in [pool.submit(answer_all, source, pipe) for pipe in pipes]:
            done.result()
    source.close()


if __name__ == "__main__":
    main(sys.argv[1:])
