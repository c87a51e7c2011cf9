"""A few numbers by which images are known again, however many they are: whether any was trained on."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from vitrail.data.inspection import content_hash
from vitrail.data.sources import Source
from vitrail.decoding import UnreadableImage
from vitrail.pixels import RGB

SIZE = 1000
DIGITS = 12
"""Of a name's hash: a million images agree by chance with one of a thousand once in 300,000 evaluations."""

UNREAD = "unread"


def sketch(source: Source) -> str:
    """Return a fair sample of the images, or all there are: the smallest hashes of names, each with its content's."""
    chosen = heapq.nsmallest(SIZE, ((one, index) for index, one in enumerate(_names(source))))
    return " ".join(one + _content(source, index) for one, index in chosen)


def shared(source: Source, known: str) -> tuple[int, bool]:
    """Return how many images are among those that a sketch was made of, and whether that is exact.

    An image is the same where its name and its bytes are. Of a sketch that is a sample, the number is what those that
    are found in it stand for.
    """
    contents = {one[:DIGITS]: one[DIGITS:] for one in known.split()}
    found = sum(
        one in contents and UNREAD != contents[one] == _content(source, index)
        for index, one in enumerate(_names(source))
    )
    if len(contents) < SIZE:
        return found, True
    return min(round(found * 16**DIGITS / int(max(contents), 16)), len(source)), False


def _names(source: Source) -> Iterator[str]:
    return (hashlib.blake2b(name, digest_size=DIGITS // 2).hexdigest() for name in source.identities())


def _content(source: Source, index: int) -> str:
    """Return the hash of an image's file, or pixels; UNREAD where it cannot be read."""
    try:
        data = source.encoded(index)
        if data is None:
            data = source.image(index, RGB).numpy().tobytes()
    except (OSError, UnreadableImage):
        return UNREAD
    return content_hash(data)[:4].hex()
