"""The HTTP server: timeouts for slow clients, limits on tiny chunks and headers, and graceful shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vitrail.errors import ConfigError, write_option
from vitrail.server.settings import Serving

BACKLOG = 2048
"""Connections that the system holds until the server takes them."""
KEEP_ALIVE_S = 5
"""Seconds that a connection is kept for another request; after the signal to end, that it may still bring one."""
READ_SIZE = 2**16
"""Bytes that are taken of a connection before it is the turn of others."""
MOST_HEADERS = 100
"""Headers of a request."""
FREE_CHUNKS = 64
"""Chunks of a body that may be of any size."""
LEAST_CHUNK = 512
"""Bytes that the other chunks of a body must have on average."""
CLOSE = (b"connection", b"close")
"""The header that tells a client that the connection ends with this answer."""
OTHER_FILES = 64
"""Files that the process opens beside its connections."""


def listen(serving: Serving) -> socket.socket:
    """Take the port, and return its socket.

    Raises:
        ConfigError: It is taken, or there is no such host.
    """
    try:
        addresses = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        takes_ipv4_too = serving.host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=takes_ipv4_too)
        # connections inherit it; without, the second half of each answer would wait 40 ms for the client's word
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except PermissionError as error:
        where = write_option("port", serving.port)
        raise ConfigError(f"{where}: needs root; choose one above 1023") from error
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            where = write_option("port", serving.port)
            raise ConfigError(f"{where}: is taken on {serving.host}; choose another, or 0") from error
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
    """Answer until SIGTERM or Ctrl-C; then refuse new connections, finish with those that there are, and return.

    Args:
        app: The ASGI application that answers.
        serving: Settings of the server, of which the limits matter here.
        listening: The socket that connections come to.
        on_ready: Called when connections will be answered, even if the signal comes at once.
    """
    limits = serving.limits

    class Connection(_Connection):
        timeout_s = limits.timeout_s

        def is_ending(self) -> bool:
            return server.should_exit

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_close_at_end(message: Any) -> None:
            if message["type"] == "http.response.start" and server.should_exit:
                message["headers"] = [*message["headers"], CLOSE]
            await send(message)

        await app(scope, receive, send_and_close_at_end)

    config = uvicorn.Config(
        answer,
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
    server = _Server(config)
    # uvicorn raises the signal again when it has ended, which would be the end by a signal instead of status 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    on_ready()
    server.run(sockets=[listening])


def _allow_connections(wanted: int) -> int:
    """Raise the number of files that the process may open, as far as the system lets it; return the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files - OTHER_FILES


class _Server(uvicorn.Server):
    """Takes what has connected before it closes the port: the system would reset what is not taken yet."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
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


class _Messages(h11.Connection):
    """Refuses headers and chunks that are so small and so many that taking them apart would hold up all others."""

    fault: str | None = None
    """Why the request was refused."""
    _chunks = 0
    """Chunks of the body so far."""
    _size = 0
    """Bytes of the body so far."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = 0
            self._size = 0
            if len(event.headers) > MOST_HEADERS:
                self._refuse(f"the request has more than {MOST_HEADERS} headers")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._size += len(event.data)
            if self._chunks > FREE_CHUNKS + self._size // LEAST_CHUNK:
                self._refuse(f"the body comes in chunks of under {LEAST_CHUNK} bytes; send larger ones")
        return event

    def _refuse(self, fault: str) -> None:
        self.fault = fault
        raise h11.RemoteProtocolError(fault)


class _Connection(H11Protocol):
    """Ends when a request's header does not arrive in time, or when nobody reads the answer.

    A client that has sent all that it wants to, and says so, gets its answers. When the server is about to end, one
    that has not heard so yet has KEEP_ALIVE_S to ask, and its answer tells it.
    """

    timeout_s: float
    """Seconds that a request's header, or the reading of an answer, may take."""
    _has_sent_all: bool = False
    """Whether the client will send nothing more."""
    _unsent: asyncio.TimerHandle | None = None
    """Aborts the connection unless a request's header, or the rest of a body that was refused, comes in time."""
    _unread: asyncio.TimerHandle | None = None
    """Aborts the connection unless the answer is read in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn: _Messages = _Messages(h11.SERVER)
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]
        self._watch_for_request()
        if self.is_ending():
            self.shutdown()

    def is_ending(self) -> bool:
        """Say whether the server was told to end."""
        raise NotImplementedError

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_for_request()

    def _watch_for_request(self) -> None:
        """Start the timer for the next request's header, or stop it as soon as the header is there."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self._unsent is None:
            self._unsent = self.loop.call_later(self.timeout_s, self.transport.abort)
        elif not is_idle and self._unsent is not None:
            self._unsent.cancel()
            self._unsent = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # which closes it when all is read
        if self._unsent is None:
            self._unsent = self.loop.call_later(self.timeout_s, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(self.conn.fault or msg)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Say whether the connection is kept, because of answers that are still to be given."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        self._has_sent_all = True
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins with the next request, if it is there
        if self._has_sent_all and self.cycle.response_complete:
            self.transport.close()

    def shutdown(self) -> None:
        """Give an idle connection a little time for another request, as the server is about to end."""
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_S, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._unsent, self._unread):
            if timer is not None:
                timer.cancel()
