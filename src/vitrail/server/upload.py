"""Uploads: the files of a request's body, read as they arrive and refused as soon as they are too many or too large."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitrail.server.settings import Limits

MULTIPART = b"multipart/form-data"
HOW = "send multipart/form-data (curl -F files=@IMAGE), or the bytes of one image as application/octet-stream"
NAMES_FILE = re.compile(rb";\s*filename\*?=", re.IGNORECASE)
"""The part of a field's Content-Disposition by which the field is a file."""
SHOWN_TYPE = 100
"""Letters of a wrong content type that are shown."""


class Refused(Exception):
    """A request that is not answered, with the status and the reason that it gets instead.

    Args:
        status: The status.
        reason: The reason, in a line.
        retry_s: Seconds after which the same request may be answered; None does not say.
    """

    def __init__(self, status: int, reason: str, retry_s: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_s = retry_s


class Room:
    """How many images, and bytes of their files, are held for all requests together, and by which address.

    Where it is full, who holds less takes from who holds the most: the last request of that address
    is given up.

    Args:
        limits: Limits of requests, of which the queue and the bytes held matter here.
        held: What messages call that of which too many wait.
        seconds_each: Returns about how long each will take, for who has to come again.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        held: str = "images",
        seconds_each: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limits = limits
        self._held = held
        self._seconds_each = seconds_each
        self._shares: dict[Share, None] = {}
        self.images = self.bytes = 0

    def share(self, address: str = "") -> Share:
        """Return the share of a new request of a client, empty so far."""
        return Share(self, address)

    def take(self, share: Share, images: int, size: int) -> None:
        """Hold more images and bytes for a request.

        Raises:
            Refused: The room is full, and no other address holds more than this one.
        """
        while (
            self.images + images > self._limits.queue or self.bytes + size > self._limits.held_bytes
        ):
            self._give_up_another(share, self._weigh(images, size))
        self._shares[share] = None
        self.images += images
        self.bytes += size

    def refusal(self) -> Refused:
        """Return what who finds no place is told."""
        reason = f"too many {self._held} are waiting; try again later"
        return Refused(429, reason, self.images * self._seconds_each())

    def give_back(self, share: Share) -> None:
        """Hold nothing for a request any more."""
        self._shares.pop(share, None)
        self.images -= share.images
        self.bytes -= share.bytes

    def _give_up_another(self, share: Share, wanted: float) -> None:
        held: dict[str, float] = {share.address: wanted}
        for other in self._shares:
            held[other.address] = held.get(other.address, 0) + self._weigh(
                other.images, other.bytes
            )
        address = max(held, key=lambda one: held[one])
        if held[address] <= held[share.address]:
            raise self.refusal()
        next(other for other in reversed(self._shares) if other.address == address).give_up()

    def _weigh(self, images: int, size: int) -> float:
        """Return the part of the room that these take."""
        return max(images / self._limits.queue, size / self._limits.held_bytes)


class Share:
    """What one request holds of the room; it is given back at the end of a `with` block."""

    def __init__(self, room: Room, address: str) -> None:
        self._room = room
        self.address = address
        self.images = self.bytes = 0
        self.is_given_up = False
        """Whether the room was wanted by another, and the request is not to be answered any
        more."""
        self.on_given_up: Callable[[], object] = lambda: None
        """Called when it is."""

    def take(self, *, images: int = 0, size: int = 0) -> None:
        """Hold more images and bytes.

        Raises:
            Refused: The room is full, or was wanted by another.
        """
        if self.is_given_up:
            raise self._room.refusal()
        self._room.take(self, images, size)
        self.images += images
        self.bytes += size

    def give_up(self) -> None:
        """Give it back before the request is answered."""
        self._room.give_back(self)
        self.images = self.bytes = 0
        self.is_given_up = True
        self.on_given_up()

    @asynccontextmanager
    async def held(self, timeout_s: float | None) -> AsyncIterator[None]:
        """Hold it while its request is answered, and give it back at the end of the block.

        Args:
            timeout_s: Seconds that this may take; None sets no limit.

        Raises:
            Refused: The room was wanted by another.
            TimeoutError: It took too long.
        """
        with self:
            try:
                async with asyncio.timeout(timeout_s) as deadline:
                    self.on_given_up = lambda: deadline.expired() or deadline.reschedule(0)
                    yield
            except TimeoutError as error:
                if self.is_given_up:
                    raise self._room.refusal() from error
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._room.give_back(self)


async def read_files(
    headers: Mapping[str, str], chunks: AsyncIterator[bytes], limits: Limits, share: Share
) -> list[bytearray]:
    """Return the files of a request, in their order.

    Raises:
        Refused: They are too many or too large, or the body is not what it says.
    """
    if headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "the body is compressed; send it as it is")
    length = int(headers.get("content-length", "0"))  # h11 has made sure that it is a number
    if length > limits.request_bytes:
        raise Refused(
            413, f"the request has {length:,} bytes; at most {limits.request_bytes:,} are taken"
        )
    files = _Files(limits, share)
    write, finish = _choose_reader(headers.get("content-type", ""), files)
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limits.request_bytes:
            raise Refused(413, f"the request has more than {limits.request_bytes:,} bytes")
        write(chunk)
    finish()
    return files.contents


class _Files:
    """The files that have arrived so far, the last of which grows."""

    def __init__(self, limits: Limits, share: Share) -> None:
        self._limits = limits
        self._share = share
        self.contents: list[bytearray] = []

    def begin(self) -> None:
        if len(self.contents) == self._limits.max_files:
            most = self._limits.max_files
            raise Refused(413, f"the request has more than {most} file{'s' * (most > 1)}")
        self._share.take(images=1)
        self.contents.append(bytearray())

    def add(self, data: bytes) -> None:
        self._share.take(size=len(data))
        if len(self.contents[-1]) + len(data) > self._limits.max_bytes:
            raise Refused(
                413, f"file {len(self.contents)} has more than {self._limits.max_bytes:,} bytes"
            )
        self.contents[-1] += data


def _choose_reader(
    content_type: str, files: _Files
) -> tuple[Callable[[bytes], object], Callable[[], None]]:
    """Return what takes the chunks of a body of this type, and what is to be called after the last."""
    kind, options = parse_options_header(content_type)
    if kind == MULTIPART:
        boundary = options.get(b"boundary")
        if not boundary:
            raise Refused(
                400,
                "multipart/form-data comes without its boundary; let your library write this "
                "header",
            )
        form = _Form(boundary, files)
        return form.write, form.finish
    if kind and not kind.startswith(b"image/") and kind != b"application/octet-stream":
        raise Refused(415, f"{kind.decode('latin-1')[:SHOWN_TYPE]} is not taken; {HOW}")
    files.begin()

    def finish() -> None:
        if not files.contents[0]:
            raise Refused(400, f"the request holds no image; {HOW}")

    return files.add, finish


class _Form:
    """A form whose every field is a file."""

    def __init__(self, boundary: bytes, files: _Files) -> None:
        self._files = files
        self._header = bytearray()
        self._disposition = b""
        self._is_whole = False
        callbacks = {
            "on_header_begin": self._header.clear,
            "on_header_field": self._extend_header,
            "on_header_value": self._extend_header,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_file,
            "on_part_data": lambda data, start, end: files.add(data[start:end]),
            "on_end": self._end_form,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError as error:
            raise Refused(400, f"the form cannot be read ({error})") from error

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refused(400, f"the form cannot be read ({error})") from error

    def finish(self) -> None:
        if not self._is_whole:
            raise Refused(400, "the form ends in the middle")
        if not self._files.contents:
            raise Refused(400, "the form holds no file")

    def _extend_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower().startswith(b"content-disposition"):
            self._disposition = bytes(self._header)

    def _begin_file(self) -> None:
        if NAMES_FILE.search(self._disposition) is None:
            raise Refused(400, "the form has a field that is no file; send images only")
        self._disposition = b""
        self._files.begin()

    def _end_form(self) -> None:
        self._is_whole = True
