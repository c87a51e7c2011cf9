"""A fixed-size sketch (bottom-k hashes) of a data set, to detect overlap of evaluation with training images."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from itertools import count

from vitrail.data.audit.inspect_file import hash_content
from vitrail.data.sources import Source
from vitrail.images.pixels import RGB, UnreadableImage

SIZE = 1000
"""Most images of a sketch."""
DIGITS = 12
"""Hexadecimal digits of a name's hash: a million images agree by chance with one of a thousand once
in 300,000 evaluations."""
UNREAD = "unread"
"""Stands for the content of an image that cannot be read."""


def make_sketch(source: Source) -> str:
    """Return a random sample of the images, or all of them: the smallest hashes of names, each with its content's."""
    return " ".join(name + _short_content_hash(source, index) for name, index in _sample(source))


def hash_sample(source: Source) -> dict[int, bytes]:
    """Return the content hash of each image of the sample that a sketch has, by its index, without unreadable ones."""
    contents = {}
    for _, index in _sample(source):
        content = _hash_image(source, index)
        if content is not None:
            contents[index] = content
    return contents


def count_overlap(source: Source, known: str) -> tuple[int, bool]:
    """Return how many images are among those that a sketch was made of, and whether that is exact.

    Two images are the same where their names and their bytes are. Where the sketch is a sample, the
    number is estimated from the images that are in it.
    """
    contents = {entry[:DIGITS]: entry[DIGITS:] for entry in known.split()}
    common = 0
    for index, name in enumerate(_hash_names(source)):
        content = contents.get(name, UNREAD)
        if content != UNREAD and content == _short_content_hash(source, index):
            common += 1
    if len(contents) < SIZE:
        return common, True
    # the largest hash of a sample says which share of all images it is
    estimated = round(common * 16**DIGITS / int(max(contents), 16))
    return min(estimated, len(source)), False


def _hash_names(source: Source) -> Iterator[str]:
    for name in source.identities():
        yield hashlib.blake2b(name, digest_size=DIGITS // 2).hexdigest()


def _sample(source: Source) -> list[tuple[str, int]]:
    """Return the smallest hashes of names, each with the index of its image."""
    return heapq.nsmallest(SIZE, zip(_hash_names(source), count()))


def _short_content_hash(source: Source, index: int) -> str:
    """Return the first digits of an image's content hash; UNREAD where it cannot be read."""
    content = _hash_image(source, index)
    return UNREAD if content is None else content[:4].hex()


def _hash_image(source: Source, index: int) -> bytes | None:
    """Return the hash of an image's file, or pixels; None where it cannot be read."""
    try:
        data = source.encoded(index)
        if data is None:
            data = source.image(index, RGB).numpy().tobytes()
    except (OSError, UnreadableImage):
        return None
    return hash_content(data)
