"""Checks of a request's headers before anything else: request smuggling and DNS rebinding are refused."""

from __future__ import annotations

from collections.abc import Iterable

from vitrail.errors import write_option
from vitrail.server.settings import Serving

SHOWN_NAME = 100
"""Letters of a wrong host name that are shown."""


def find_fault(
    headers: Iterable[tuple[bytes, bytes]], http_version: str, serving: Serving
) -> tuple[int, str] | None:
    """Return the status and the reason of a refusal, or None for headers that are in order.

    A request whose length is told in two ways may be two requests to a proxy (request smuggling).
    One that calls the server by a name which it was not told may come from a page of a stranger,
    whose name was made to lead here (DNS rebinding).
    """
    values = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" in values and (b"content-length" in values or http_version == "1.0"):
        return (
            400,
            "the request has a Transfer-Encoding beside a Content-Length, or in HTTP/1.0; send one "
            "of the two",
        )
    host = values.get(b"host")
    if host is None:  # which HTTP/1.0 does without
        return None
    name = host.decode("latin-1")
    if not serving.accepts_host(name):
        return 421, (
            f"this server was not told that it is called {name[:SHOWN_NAME]!r}; "
            f"ask it by its address, or start it with {write_option('host_name', 'NAME')}"
        )
    return None
