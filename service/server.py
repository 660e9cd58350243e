"""One running service: the listening socket, the loop, and an orderly end on SIGTERM."""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
import uvloop

from retrieval.errors import BadInput, DiptychError
from service import logs
from service.app import create_app
from service.connections import Connections
from service.generation import Generation
from service.generations import Generations
from service.key_settings import weak_predict_keys
from service.pauses import settle
from service.settings import Settings, unheard

LOG = logging.getLogger("diptych")
BACKLOG = 2048
OTHER_FILES = 256  # beside connections: the store, engines, the log


class Server(uvicorn.Server):
    """uvicorn, except that a signal first makes the service not ready, and that an asked-for end is exit code 0."""

    def __init__(self, config: uvicorn.Config, generations: Generations, grace_seconds: float) -> None:
        super().__init__(config)
        self._generations = generations
        self._grace_seconds = grace_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for one in signals:
            loop.add_signal_handler(one, self.stop)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)

    def stop(self) -> None:
        """Not ready → grace → no new connections → finish what was begun; asked again, skip what is waited for."""
        self.force_exit = self.should_exit
        if self._grace_seconds and not self._generations.stopping:
            asyncio.get_running_loop().call_later(self._grace_seconds, self._end)
        else:
            self._end()
        self._generations.stop()

    def _end(self) -> None:
        self.should_exit = True


def run(settings: Settings) -> None:
    """Serve until a signal says stop. Raises DiptychError when the address or the bundle cannot be had."""
    logs.configure(settings.log_format)
    for sentence in [*unheard(os.environ), *weak_predict_keys(settings.predict_keys)]:
        LOG.warning("%s", sentence)
    _allow_files(settings.max_connections + OTHER_FILES)
    listener = _listen(settings.host, settings.port)
    try:
        uvloop.run(_serve(settings, listener))
    finally:
        listener.close()


async def _serve(settings: Settings, listener: socket.socket) -> None:
    failures: list[DiptychError] = []

    def opened(outcome: Generation | DiptychError) -> None:
        if isinstance(outcome, Generation):
            settle()
            _announce(outcome, listener, logs.as_text(settings.log_format))
        else:
            failures.append(outcome)
            server.should_exit = True

    app = create_app(settings, opened)
    connections = Connections(settings, app.state.metrics, app.state.generations.full, app.busy_route.turns_away)
    config = uvicorn.Config(
        app,
        http=connections.protocol,  # type: ignore[arg-type]  # it calls it as it would a class
        ws="none",
        lifespan="on",  # else a failure of the application's start would leave a service that opens nothing
        log_config=None,
        log_level="error",  # its warnings are a line for each malformed request, which the metrics count
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
        backlog=BACKLOG,
    )
    server = Server(config, app.state.generations, settings.grace_seconds)
    app.state.supervisor.retry("connection_watch", connections.watch)  # ends with the application
    try:
        await server.serve(sockets=[listener])
    except SystemExit as error:  # uvicorn's way to say that the application did not start
        raise DiptychError("the service could not be started; its log says why") from error
    if failures:
        raise failures[0]
    LOG.info("stopped")


def _allow_files(needed: int) -> None:
    """Raise the soft limit of open files so far that no connection fails for want of one. Raises BadInput."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BadInput(
            f"DIPTYCH_MAX_CONNECTIONS is {needed - OTHER_FILES}, but this process may open only {hard} files. "
            f"Set it to {max(1, hard - OTHER_FILES)} or less, or raise the limit (ulimit -n)."
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})"
        raise BadInput(f"{why}. Choose another with --host or --port.") from error


def _announce(generation: Generation, listener: socket.socket, how_to_ask: bool) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if opened := generation.opened:
        LOG.info(
            "serving bundle %s (%s labels, %d dimensions, loaded in %.1f s) on %s",
            generation.name, f"{opened.labels:,}", opened.dim, opened.seconds, address,
        )  # fmt: skip
    if how_to_ask:  # JSON would put backslashes before its quotes
        LOG.info("""ask: curl -s %s/predict -d '{"queries": ["your query"], "k": 5}'""", address)
