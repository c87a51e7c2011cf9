"""The HTTP server: where it listens, how many connections it keeps, and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import resource
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from vitrail.errors import ConfigError, write_option
from vitrail.server.idle import TELL_EVERY_S, IdleConnections
from vitrail.server.log import FIELDS
from vitrail.server.protocol import FAULT, KEEP_ALIVE_S, Connection
from vitrail.server.settings import Serving

BACKLOG = 2048
"""Connections that the system holds until the server takes them."""
CLOSE = (b"connection", b"close")
"""The header that tells a client that the connection ends with this answer."""
OTHER_FILES = 64
"""Files that the process opens beside its connections."""
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end the server; the last is sent when its terminal goes away."""

log = logging.getLogger(__name__)


def listen(serving: Serving) -> socket.socket:
    """Take the port, and return its socket.

    Raises:
        ConfigError: It is taken, or there is no such host.
    """
    try:
        addresses = socket.getaddrinfo(
            serving.host, serving.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, address = addresses[0]
        takes_ipv4_too = serving.host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(
            address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=takes_ipv4_too
        )
        # connections inherit it; without, the second half of each answer would wait 40 ms for the
        # client's word
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except PermissionError as error:
        where = write_option("port", serving.port)
        raise ConfigError(f"{where}: needs root; choose one above 1023") from error
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            where = write_option("port", serving.port)
            raise ConfigError(
                f"{where}: is taken on {serving.host}; choose another, or 0"
            ) from error
        reason = getattr(error, "strerror", None) or error
        where = f"{write_option('host', serving.host)} {write_option('port', serving.port)}"
        raise ConfigError(f"{where}: cannot listen there ({reason})") from error


def format_url(listening: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    if listening.family == socket.AF_INET6:
        return f"http://[{host}]:{port}"
    return f"http://{host}:{port}"


def run(app: Any, serving: Serving, listening: socket.socket, on_ready: Callable[[], None]) -> None:
    """Answer until a signal of ENDS; then refuse new connections, finish with those that there are, and return.

    Args:
        app: The ASGI application that answers.
        serving: Settings of the server, of which the limits matter here.
        listening: The socket that connections come to.
        on_ready: Called when connections will be answered, even if the signal comes at once.
    """
    limits = serving.limits

    class LimitedConnection(Connection):
        timeout_s = limits.timeout_s
        most = _allow_connections(limits.connections)
        idle = IdleConnections()

        def is_ending(self) -> bool:
            return server.should_exit

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_close_at_end(message: Any) -> None:
            is_last = server.should_exit or FAULT in scope["state"]
            if (
                is_last
                and message["type"] == "http.response.start"
                and CLOSE not in message["headers"]
            ):
                message["headers"] = [*message["headers"], CLOSE]
            await send(message)

        await app(scope, receive, send_and_close_at_end)

    config = uvicorn.Config(
        answer,
        http=LimitedConnection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=min(KEEP_ALIVE_S, math.ceil(limits.timeout_s)),
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    server = _Server(config)
    # uvicorn raises the signal again when it has ended, which would be the end by a signal instead
    # of status 0
    for number in ENDS:
        # nohup has a process ignore that its terminal is gone
        if signal.getsignal(number) is not signal.SIG_IGN or number is not signal.SIGHUP:
            signal.signal(number, server.handle_exit)
    on_ready()
    server.run(sockets=[listening])


def _allow_connections(wanted: int) -> int:
    """Raise the number of files that the process may open, as far as the system lets it; return the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = OTHER_FILES + BACKLOG  # as many may be taken at once, before any of them is closed
    files = wanted + others
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(files - others, (files - OTHER_FILES) // 2)


class _Server(uvicorn.Server):
    """Takes what has connected before it closes the port: the system would reset what is not taken yet."""

    _told_by: str | None = None
    """Name of the last signal."""
    _tell_trouble_at = 0.0
    """Time from which trouble is logged again."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._log_trouble)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        # to be logged later: a signal may come amid a line of the log
        self._told_by = signal.Signals(sig).name

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("the server ends", extra={FIELDS: {"by": self._told_by}})
        loop = asyncio.get_running_loop()
        for listening in sockets or []:
            with contextlib.suppress(OSError):  # until there is none any more
                for _ in range(BACKLOG):
                    connection = listening.accept()[0]
                    connection.setblocking(False)
                    await loop.connect_accepted_socket(self._connect, connection)
        await super().shutdown(sockets)

    def _connect(self) -> asyncio.Protocol:
        config: Any = self.config
        return config.http_protocol_class(config, self.server_state, self.lifespan.state)

    def _log_trouble(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log in a line, once a minute, what the system refuses, such as one more open file; the rest as usual."""
        error = context.get("exception")
        if isinstance(error, OSError):
            # asyncio tries again as often as there may be connections
            if loop.time() > self._tell_trouble_at:
                self._tell_trouble_at = loop.time() + TELL_EVERY_S
                log.error(context["message"], extra={FIELDS: {"reason": str(error)}})
        elif not (
            self.should_exit and isinstance(error, ValueError)
        ):  # or to listen again at a port that is closed
            loop.default_exception_handler(context)
