"""What the headers of a request must be like before anything else of it is looked at."""

from __future__ import annotations

from collections.abc import Iterable

from vitrail.server.settings import Serving


def find_fault(headers: Iterable[tuple[bytes, bytes]], http_version: str, serving: Serving) -> tuple[int, str] | None:
    """Return the status and the reason of a refusal, or None.

    A request whose length is told in two ways may be two requests to a proxy. One that calls the server by a name which
    it was not told may come from a page of a stranger, whose name was made to lead here (DNS rebinding).
    """
    given = {name.lower(): value for name, value in headers}
    if b"transfer-encoding" in given and (b"content-length" in given or http_version == "1.0"):
        return 400, "the request has a Transfer-Encoding beside a Content-Length, or in HTTP/1.0; send one of the two"
    host = given.get(b"host", b"").decode("latin-1")
    if host and not serving.is_called(host):
        return 421, (
            f"this server was not told that it is called {host[:100]!r}; ask it by its address, or start it with "
            "--host-name NAME"
        )
    return None
