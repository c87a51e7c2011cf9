"""Connections that are never waited for without end, and a server that finishes what it has begun before it leaves."""

from __future__ import annotations

import asyncio
import errno
import math
import resource
import signal
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitrail.errors import ConfigError
from vitrail.serve.settings import Serving

BACKLOG = 2048
KEEP_ALIVE_S = 5
FREE_FILES = 64
"""That the process opens beside its connections."""


def listen(serving: Serving) -> socket.socket:
    """Take the port.

    Raises:
        ConfigError: It is taken, or there is no such host.
    """
    try:
        found = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        both = serving.host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(found[4][:2], family=found[0], backlog=BACKLOG, dualstack_ipv6=both)
        # connections inherit it; without, the second half of each answer would wait 40 ms for the client's word
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except PermissionError as error:
        raise ConfigError(f"--port {serving.port}: needs root; choose one above 1023") from error
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise ConfigError(f"--port {serving.port}: is taken on {serving.host}; choose another, or 0") from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {serving.host} --port {serving.port}: cannot listen there ({reason})") from error


def address(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if listening.family == socket.AF_INET6 else f"http://{host}:{port}"


def run(app: Any, serving: Serving, listening: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C; then refuse what is new, finish what is begun, and return."""
    limits = serving.limits

    class Connection(_Connection):
        patience_s = limits.timeout_s

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=min(KEEP_ALIVE_S, math.ceil(limits.timeout_s)),
        limit_concurrency=_allow_connections(limits.connections),
        timeout_graceful_shutdown=int(limits.timeout_s) + 1,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it has ended, which would be the end by a signal instead of status 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listening])


def _allow_connections(wanted: int) -> int:
    """Let the process open so many, as far as the system lets it, and return how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted + FREE_FILES if hard == resource.RLIM_INFINITY else min(wanted + FREE_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most - FREE_FILES


class _Connection(H11Protocol):
    """Ends when a request's header does not arrive in time, or when nobody reads the answer."""

    patience_s: float
    _waiting: asyncio.TimerHandle | None = None
    """For a request's header, or for the rest of a body that was refused."""
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def _wait(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._waiting is None:
            self._waiting = self.loop.call_later(self.patience_s, self.transport.abort)
        elif not is_idle and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # which closes it when all is read
        self._waiting = self._waiting or self.loop.call_later(self.patience_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._waiting, self._unread):
            if timer is not None:
                timer.cancel()
