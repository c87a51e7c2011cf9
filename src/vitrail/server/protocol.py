"""One connection: HTTP/1.1 within limits, timeouts for slow clients, and an answer that can be read before the end."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

if TYPE_CHECKING:
    from vitrail.server.idle import IdleConnections

KEEP_ALIVE_S = 5
"""Seconds that a connection is kept for another request; after the signal to end, that it may still
bring one."""
LINGER_S = 2
"""Seconds that a client has to read its last answer, while what it still sends is dropped."""
READ_SIZE = 2**16
"""Bytes that are taken of a connection before it is the turn of others."""
LARGEST_HEADER = 2**14
"""Bytes of a request's header, or of the line before a chunk."""
MOST_HEADERS = 100
"""Headers of a request."""
FREE_CHUNKS = 64
"""Chunks of a body that may be of any size."""
LEAST_CHUNK = 512
"""Bytes that the other chunks of a body must have on average."""
TLS = b"\x16\x03"
"""What a connection begins with that was meant for HTTPS."""
BLANK_LINE = re.compile(rb"\n\r?\n")
"""What a header ends with."""
QUOTED = re.compile(r":? (bytearray\()?b['\"].*", re.DOTALL)
"""What h11 repeats of a request in its messages."""
FAULT = "fault"
"""Key in the state of a request's scope: the Fault for which it is to be refused."""

log = logging.getLogger(__name__)


class Fault(NamedTuple):
    """Why what a connection brought is no request."""

    status: int
    """Status of the answer."""
    reason: str


TOO_MANY_HEADERS = Fault(400, f"the request has more than {MOST_HEADERS} headers")


class _Messages(h11.Connection):
    """Reads requests up to the first that has a fault; nothing after that is believed.

    Headers and chunks that are so small and so many that taking them apart would hold up all others
    are faults too.
    """

    fault: Fault | None = None
    _chunks = 0
    """Chunks of the body so far."""
    _size = 0
    """Bytes of the body so far."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, LARGEST_HEADER)

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.IDLE and data.startswith(TLS):
            self.fault = Fault(
                400,
                "this is HTTPS, and the server speaks HTTP; ask at http://, or put a proxy before "
                "it",
            )
        elif self.fault is None:
            super().receive_data(data)

    def next_event(self) -> Any:
        if self.fault is None and self.their_state is h11.IDLE and self._has_many_headers():
            self.fault = TOO_MANY_HEADERS
        if self.fault is not None:
            return h11.NEED_DATA
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.fault = _explain(error)
            return h11.NEED_DATA
        self.fault = self._find_fault(event)
        return event if self.fault is None else h11.NEED_DATA

    def _has_many_headers(self) -> bool:
        """Say whether what comes next has too many headers, without taking them apart, which holds up all others."""
        head = self.trailing_data[0][:LARGEST_HEADER]
        end = BLANK_LINE.search(head)
        return head.count(b"\n", 0, end.start() if end else len(head)) > MOST_HEADERS

    def _find_fault(self, event: Any) -> Fault | None:
        if isinstance(event, h11.Request):
            self._chunks = 0
            self._size = 0
            if not event.http_version.startswith(b"1."):
                return Fault(
                    505, f"HTTP/{event.http_version.decode()} is not spoken; ask in HTTP/1.1"
                )
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._size += len(event.data)
            if self._chunks > FREE_CHUNKS + self._size // LEAST_CHUNK:
                return Fault(
                    400, f"the body comes in chunks of under {LEAST_CHUNK} bytes; send larger ones"
                )
        return None


def _explain(error: h11.RemoteProtocolError) -> Fault:
    """Return what h11 has against a request, without the part of the request that it quotes."""
    if error.error_status_hint == 431:
        return Fault(431, f"the request's header has more than {LARGEST_HEADER:,} bytes")
    reason = QUOTED.sub("", str(error))
    return Fault(
        error.error_status_hint, f"the request is no valid HTTP ({reason[:1].lower()}{reason[1:]})"
    )


class _ClosedInTurn:
    """A transport whose `close` is its protocol's: a system that closes what is unread resets the last answer too."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self._close = close
        self._is_closing = False

    def close(self) -> None:
        if not self.is_closing():
            self._is_closing = True
            self._close()

    def is_closing(self) -> bool:
        return self._is_closing or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(H11Protocol):
    """Ends when a request's header does not arrive in time, or when nobody reads the answer.

    What is no request is answered as every other refusal, by the application, which finds the
    reason in the state of the scope. A client that has sent all that it wants to, and says so, gets
    its answers. When the server is about to end, one that has not heard so yet has KEEP_ALIVE_S to
    ask, and its answer tells it.
    """

    timeout_s: float
    """Seconds that a request's header, or the reading of an answer, may take."""
    most: int
    """Connections that are open at a time."""
    idle: IdleConnections
    """The connections that no request has come from yet, or none after the last."""
    _raw: asyncio.Transport
    """The transport, whose `close` closes at once."""
    _has_sent_all: bool = False
    """Whether the client will send nothing more."""
    _unsent: asyncio.TimerHandle | None = None
    """Aborts the connection unless a request's header, or the rest of a body that was refused,
    comes in time."""
    _unread: asyncio.TimerHandle | None = None
    """Aborts the connection unless the answer is read in time."""
    _lingering: asyncio.TimerHandle | None = None
    """Aborts the connection, of which nothing is wanted any more, unless the client closes it."""

    def is_ending(self) -> bool:
        """Say whether the server was told to end."""
        raise NotImplementedError

    @property
    def address(self) -> str:
        """The client's."""
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        closed_in_turn: Any = _ClosedInTurn(transport, self._linger)
        super().connection_made(closed_in_turn)
        self.conn: _Messages = _Messages()
        transport.max_size = READ_SIZE  # type: ignore[attr-defined]
        self._watch_for_request()
        if len(self.connections) > self.most:
            self._make_room()
        if self.is_ending():
            self.shutdown()

    def _make_room(self) -> None:
        """End one connection, since too many are open: one without a request, of which this is one."""
        other = self.idle.choose_to_end()
        self.connections.discard(other)
        other.abort()

    def abort(self) -> None:
        """End at once."""
        self._raw.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch_for_request()

    def _watch_for_request(self) -> None:
        """Start the timer for the next request's header, or stop it as soon as the header is there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle.discard(self)
            if self._unsent is not None:
                self._unsent.cancel()
                self._unsent = None
            return
        self.idle.add(self)
        if self._unsent is None:
            self._unsent = self.loop.call_later(self.timeout_s, self.abort)

    def _should_upgrade(self) -> bool:
        """Answer as if no other protocol had been offered; uvicorn would warn of each, and say what to install."""
        return False

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.fault is not None and not self.transport.is_closing():
            self._refuse(self.conn.fault)

    def _refuse(self, fault: Fault) -> None:
        """Let the application answer what is no request, or whose body is none."""
        if self.cycle is not None and not self.cycle.response_complete:
            state: Any = self.cycle.scope.get("state")
            state[FAULT] = fault
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
        elif self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer_fault(fault)
        else:  # an answer was given, and only the rest of the body is at fault
            self.transport.close()

    def _answer_fault(self, fault: Fault) -> None:
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "-",
            "root_path": self.root_path,
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "headers": [],
            "state": {**self.app_state, FAULT: fault},
        }
        self.cycle = RequestResponseCycle(
            scope=scope,
            conn=self.conn,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=self.on_response_complete,
        )
        app: Any = self.app
        task = self.loop.create_task(self.cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.timeout_s, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # which closes it when all is read
        if self._unsent is None:
            self._unsent = self.loop.call_later(self.timeout_s, self.abort)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Say whether the connection is kept, because of answers that are still to be given."""
        if self.transport.is_closing() or self.cycle is None or self.cycle.response_complete:
            return False
        if self.cycle.more_body and self.conn.fault is None:  # it broke off
            return False
        self._has_sent_all = True
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()  # which begins with the next request, if it is there
        if self.cycle.response_complete:
            self.idle.add(self)
            if self._has_sent_all:
                self.transport.close()

    def shutdown(self) -> None:
        """Give an idle connection a little time for another request, as the server is about to end."""
        if self.cycle is None or self.cycle.response_complete:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                KEEP_ALIVE_S, self.timeout_keep_alive_handler
            )

    def _linger(self) -> None:
        """Send what is to be sent, say that it was all, and wait for the client to close."""
        if self._has_sent_all or not self._raw.can_write_eof():
            self._raw.close()
            return
        self._raw.write_eof()
        self.flow.resume_reading()
        self._lingering = self.loop.call_later(LINGER_S, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._raw.close()
        self.idle.discard(self)
        for timer in (self._unsent, self._unread, self._lingering):
            if timer is not None:
                timer.cancel()
