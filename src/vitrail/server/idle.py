"""Which connection ends when too many are open: who holds the most without asking for anything gives one up."""

from __future__ import annotations

import logging
import time
from typing import Generic, Protocol, TypeVar

TELL_EVERY_S = 60
"""Seconds between two lines of the log that say that too many are open."""

log = logging.getLogger(__name__)


class Addressed(Protocol):
    """A connection, of which only the client's address matters."""

    @property
    def address(self) -> str: ...


Open = TypeVar("Open", bound=Addressed)


class IdleConnections(Generic[Open]):
    """Connections without a request, by the addresses of their clients, the oldest of each first."""

    def __init__(self) -> None:
        self._of: dict[str, dict[Open, None]] = {}
        self._told_at = -float("inf")

    def add(self, connection: Open) -> None:
        """Note that a connection has no request, or none any more."""
        self._of.setdefault(connection.address, {})[connection] = None

    def discard(self, connection: Open) -> None:
        """Note that a connection has a request, or has ended."""
        connections = self._of.get(connection.address, {})
        connections.pop(connection, None)
        if not connections:
            self._of.pop(connection.address, None)

    def choose_to_end(self) -> Open:
        """Return the oldest connection of the address that has the most; there must be one."""
        if time.monotonic() - self._told_at > TELL_EVERY_S:
            self._told_at = time.monotonic()
            log.warning("too many connections are open; those that ask for nothing are closed")
        connections = max(self._of.values(), key=len)
        oldest = next(iter(connections))
        self.discard(oldest)
        return oldest
