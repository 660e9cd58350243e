"""Run the service: listening socket, event loop, graceful shutdown on SIGTERM."""

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
from service.access.key_settings import weak_predict_keys
from service.app import create_app
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.connections.pool import Connections
from service.engine.gc_tuning import freeze_gc
from service.file_limits import OTHER_FILES
from service.observe import logs
from service.settings import Settings, unheard

LOG = logging.getLogger("diptych")
BACKLOG = 2048
MAX_UNSENT_IN_SYSTEM = 131_072  # bytes of a response in the socket's send buffer


class Server(uvicorn.Server):
    """uvicorn's server, which first becomes not ready on a signal and then ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, generations: BundleManager, grace_seconds: float) -> None:
        super().__init__(config)
        self._generations = generations
        self._grace_seconds = grace_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        for one in signals:
            loop.add_signal_handler(one, self.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            signals.append(signal.SIGHUP)
            loop.add_signal_handler(signal.SIGHUP, self.hang_up)
        try:
            yield
        finally:
            for one in signals:
                loop.remove_signal_handler(one)

    def stop(self) -> None:
        """Shut down: not ready → grace period → no new connections → finish requests. A second signal skips waits."""
        self.force_exit = self.should_exit
        if self._grace_seconds and not self._generations.stopping:
            asyncio.get_running_loop().call_later(self._grace_seconds, self._end)
        else:
            self._end()
        self._generations.stop()

    def hang_up(self) -> None:
        """Stop as on SIGTERM when the terminal or session ends; ignored after another signal."""
        if not self._generations.stopping:
            LOG.info("SIGHUP: stopping as on SIGTERM")
            self.stop()

    def _end(self) -> None:
        self.should_exit = True


def run(settings: Settings) -> None:
    """Serve until a signal stops it. Raises DiptychError when the address or the bundle cannot be opened."""
    logs.configure(settings.log_format)
    for sentence in [*unheard(os.environ), *weak_predict_keys(settings.predict_keys)]:
        LOG.warning("%s", sentence)
    settings = with_connections_that_fit(settings)
    listener = _listen(settings.host, settings.port)
    try:
        uvloop.run(_serve(settings, listener))
    finally:
        listener.close()


async def _serve(settings: Settings, listener: socket.socket) -> None:
    failures: list[DiptychError] = []

    def opened(outcome: Generation | DiptychError) -> None:
        if isinstance(outcome, Generation):
            freeze_gc()
            _announce(outcome, listener, logs.as_text(settings.log_format))
        else:
            failures.append(outcome)
            server.should_exit = True

    app = create_app(settings, opened)
    connections = Connections(settings, app.state.metrics, app.state.generations.full, app.busy_route.turns_away)
    config = uvicorn.Config(
        app,
        http=connections.protocol,  # type: ignore[arg-type]  # uvicorn only calls it
        ws="none",
        lifespan="on",  # else uvicorn would serve although the application failed to start
        log_config=None,
        log_level="error",  # it warns of each malformed request; the metrics count those
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
    except SystemExit as error:  # uvicorn raises it when the application does not start
        raise DiptychError("the service could not be started; its log says why") from error
    if failures:
        raise failures[0]
    LOG.info("stopped")


def with_connections_that_fit(settings: Settings) -> Settings:
    """Raise the soft limit of open files to the number of connections; return the settings.

    When the hard limit is too low, log a warning and return settings with fewer connections.
    """
    needed = settings.max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        fitting = max(1, hard - min(OTHER_FILES, hard // 2))
        LOG.warning(
            "DIPTYCH_MAX_CONNECTIONS is %d, but this process may open only %d files, so %d connections are allowed. "
            "Raise the limit (ulimit -n) to %d for all of them.",
            settings.max_connections, hard, fitting, needed,
        )  # fmt: skip
        settings = settings.model_copy(update={"max_connections": fitting})
        needed = hard
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return settings


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; `::` also accepts IPv4. Raises BadInput."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        why = f"cannot listen on {host}:{port} ({reason})"
        raise BadInput(f"{why}. Choose another with --host or --port.") from error
    # Keep unsent bytes in this process, where they are counted, and not in the socket's send buffer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_IN_SYSTEM)
    return listener


def _announce(generation: Generation, listener: socket.socket, how_to_ask: bool) -> None:
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if opened := generation.info:
        LOG.info(
            "serving bundle %s (%s labels, %d dimensions, loaded in %.1f s) on %s",
            generation.name, f"{opened.labels:,}", opened.dim, opened.seconds, address,
        )  # fmt: skip
    if how_to_ask:  # JSON would put backslashes before its quotes
        LOG.info("""ask: curl -s %s/predict -d '{"queries": ["your query"], "k": 5}'""", address)
