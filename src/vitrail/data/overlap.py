"""A few numbers by which images are known again, however many they are: whether any was trained on."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from vitrail.data.audit.inspect_file import content_hash
from vitrail.data.sources import Source
from vitrail.images.pixels import RGB, UnreadableImage

SIZE = 1000
DIGITS = 12
"""Of a name's hash: a million images agree by chance with one of a thousand once in 300,000 evaluations."""

UNREAD = "unread"


def sketch(source: Source) -> str:
    """Return a fair sample of the images, or all there are: the smallest hashes of names, each with its content's."""
    return " ".join(one + _content(source, index) for one, index in _sample(source))


def sampled_contents(source: Source) -> dict[int, bytes]:
    """Return the hash of each image's file, or pixels, of such a sample, by its number; those that can be read."""
    found = ((index, _whole_content(source, index)) for _, index in _sample(source))
    return {index: content for index, content in found if content is not None}


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


def _sample(source: Source) -> list[tuple[str, int]]:
    """Return the smallest hashes of names, and whose they are."""
    return heapq.nsmallest(SIZE, ((one, index) for index, one in enumerate(_names(source))))


def _content(source: Source, index: int) -> str:
    """Return the beginning of the hash of an image's file, or pixels; UNREAD where it cannot be read."""
    content = _whole_content(source, index)
    return UNREAD if content is None else content[:4].hex()


def _whole_content(source: Source, index: int) -> bytes | None:
    """Return the hash of an image's file, or pixels; None where it cannot be read."""
    try:
        data = source.encoded(index)
        if data is None:
            data = source.image(index, RGB).numpy().tobytes()
    except (OSError, UnreadableImage):
        return None
    return content_hash(data)
