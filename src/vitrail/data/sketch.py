"""A few numbers by which images are known again, however many they are: whether any was trained on."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

from vitrail.data.sources import Source

SIZE = 1000
DIGITS = 12
"""Of a hash. A million images agree by chance with one of a thousand such hashes once in 300,000 evaluations."""


def sketch(source: Source) -> str:
    """Return a fair sample of the images, or all there are: the smallest hashes of their names, each with its bytes."""
    chosen = heapq.nsmallest(SIZE, ((one, index) for index, one in enumerate(_hashes(source))))
    return " ".join(f"{one}{source.size(index):x}" for one, index in chosen)


def shared(source: Source, known: str) -> tuple[int, bool]:
    """Return how many images are those that a sketch was made of, by name and size, and whether that is exact.

    Of a sketch that is a sample, the number is what those that are found in it stand for.
    """
    sizes = {one[:DIGITS]: int(one[DIGITS:], 16) for one in known.split()}
    found = sum(one in sizes and source.size(index) == sizes[one] for index, one in enumerate(_hashes(source)))
    if len(sizes) < SIZE:
        return found, True
    return min(round(found * 16**DIGITS / int(max(sizes), 16)), len(source)), False


def _hashes(source: Source) -> Iterator[str]:
    return (hashlib.blake2b(name, digest_size=DIGITS // 2).hexdigest() for name in source.identities())
