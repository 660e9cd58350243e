"""A Milvus Lite server process, which keeps its data when it is killed and started again."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.service import PATIENCE


class LiteProcess:
    """A server on a free loopback port: `with LiteProcess(folder) as server`."""

    def __init__(self, folder: Path) -> None:
        """Keep data and log in `folder`."""
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server and wait until it accepts connections. Raises AssertionError if it does not."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(self._folder / "data")]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < deadline, "Milvus Lite does not start"
                time.sleep(0.05)

    def kill(self) -> None:
        """Kill the server as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
