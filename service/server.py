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
from starlette.types import ASGIApp

from retrieval.errors import BadInput, DiptychError
from service.access.key_settings import weak_predict_keys
from service.app import create_service
from service.bundles.generation import Generation
from service.bundles.manager import BundleManager
from service.connections.pool import ConnectionPool
from service.engine.gc_tuning import freeze_gc
from service.file_limits import OTHER_FILES
from service.observe import logs
from service.settings import Settings, unknown_variables

LOG = logging.getLogger("diptych")
BACKLOG = 2048
MAX_UNSENT_IN_SYSTEM = 131_072  # bytes of a response in the socket's send buffer


class Server(uvicorn.Server):
    """uvicorn's server, which first becomes not ready on a signal and then ends with exit code 0."""

    def __init__(self, config: uvicorn.Config, manager: BundleManager, grace_seconds: float) -> None:
        super().__init__(config)
        self._manager = manager
        self._grace_seconds = grace_seconds

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        for number in signals:
            loop.add_signal_handler(number, self.stop)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
            signals.append(signal.SIGHUP)
            loop.add_signal_handler(signal.SIGHUP, self.stop_on_hangup)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Shut down: not ready → grace period → no new connections → finish requests. A second signal skips waits."""
        self.force_exit = self.should_exit
        if self._grace_seconds and not self._manager.stopping:
            asyncio.get_running_loop().call_later(self._grace_seconds, self._end)
        else:
            self._end()
        self._manager.stop()

    def stop_on_hangup(self) -> None:
        """Stop as on SIGTERM when the terminal or session ends; ignored after another signal."""
        if not self._manager.stopping:
            LOG.info("SIGHUP: stopping as on SIGTERM")
            self.stop()

    def _end(self) -> None:
        self.should_exit = True


def run(settings: Settings) -> None:
    """Serve until a signal stops it. Raises DiptychError when the address or the bundle cannot be opened."""
    logs.configure(settings.log_format)
    for warning in [*unknown_variables(os.environ), *weak_predict_keys(settings.predict_keys)]:
        LOG.warning("%s", warning)
    settings = fit_connections(settings)
    listener = _listen(settings.host, settings.port)
    try:
        uvloop.run(_serve(settings, listener))
    finally:
        listener.close()


async def _serve(settings: Settings, listener: socket.socket) -> None:
    failures: list[DiptychError] = []

    def on_opened(outcome: Generation | DiptychError) -> None:
        if isinstance(outcome, Generation):
            freeze_gc()
            _announce(outcome, listener, logs.as_text(settings.log_format))
        else:
            failures.append(outcome)
            server.should_exit = True

    service = create_service(settings, on_opened)
    pool = ConnectionPool(settings, service.metrics, service.manager.full, service.predict.is_refused_unread)
    config = _uvicorn_config(service.asgi, pool, settings)
    server = Server(config, service.manager, settings.grace_seconds)
    service.supervisor.retry("connection_watch", pool.watch)  # ends with the application
    try:
        await server.serve(sockets=[listener])
    except SystemExit as error:  # uvicorn raises it when the application does not start
        raise DiptychError("the service could not be started; see its log") from error
    if failures:
        raise failures[0]
    LOG.info("stopped")


def _uvicorn_config(app: ASGIApp, pool: ConnectionPool, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=pool.protocol,  # type: ignore[arg-type]  # uvicorn only calls it
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


def fit_connections(settings: Settings) -> Settings:
    """Raise the soft limit of open files to the number of connections; return the settings.

    When the hard limit is too low, log a warning and return settings with fewer connections.
    """
    needed = settings.max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        fewer = max(1, hard - min(OTHER_FILES, hard // 2))
        LOG.warning(
            "DIPTYCH_MAX_CONNECTIONS is %d, but this process may open only %d files, so %d connections are allowed. "
            "Raise the limit (ulimit -n) to %d for all of them.",
            settings.max_connections, hard, fewer, needed,
        )  # fmt: skip
        settings = settings.model_copy(update={"max_connections": fewer})
        needed = hard
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return settings


def _listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; `::` also accepts IPv4. Raises BadInput."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual_stack = host == "::" and socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=dual_stack)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise BadInput(f"cannot listen on {host}:{port} ({reason}). Choose another with --host or --port.") from error
    # Keep unsent bytes in this process, where they are counted, and not in the socket's send buffer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_IN_SYSTEM)
    return listener


def _announce(generation: Generation, listener: socket.socket, show_example: bool) -> None:
    """Log the served bundle and, if wanted, an example request."""
    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if info := generation.info:
        LOG.info(
            "serving bundle %s (%s labels, %d dimensions, loaded in %.1f s) on %s",
            generation.name, f"{info.labels:,}", info.dim, info.seconds, address,
        )  # fmt: skip
    if show_example:  # not in JSON, which would escape its quotes
        LOG.info("""example: curl -s %s/predict -d '{"queries": ["your query"], "k": 5}'""", address)
