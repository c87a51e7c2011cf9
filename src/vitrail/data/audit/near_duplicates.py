"""Copies of a picture found among millions by their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BANDS, WIDTH = 5, 13
NEAR = 4
"""Bits in which two hashes may differ; of five bands of 13 bits, one is then equal."""
CROWD = 3000
"""Pictures that may share a band; beyond, the band says nothing, as of blank pages."""


def equal_groups(keys: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the indices of equal keys, each group of two or more in rising order.

    Args:
        keys: (n,) or, of several numbers each, (n, d).
    """
    if not len(keys):
        return []
    rows = keys.reshape(len(keys), -1)
    order = np.lexsort(rows.T[::-1])
    begins = np.flatnonzero(np.concatenate([[True], (rows[order[1:]] != rows[order[:-1]]).any(axis=1)]))
    lengths = np.diff(begins, append=len(rows))
    several = lengths > 1
    return [order[b : b + n] for b, n in zip(begins[several].tolist(), lengths[several].tolist(), strict=True)]


def near_pairs(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], int]:
    """Return pairs of pictures whose hashes differ in at most NEAR bits, and share a band with no crowd.

    Args:
        hashes: (n,); 0 stands for a picture without one.

    Returns:
        Pairs (m, 2), each once, the smaller index first; and how many pictures were in crowds, whose pairs were not
        looked at by that band.
    """
    found: list[NDArray[np.int64]] = []
    crowded = np.zeros(len(hashes), dtype=bool)
    seen = np.flatnonzero(hashes != 0)
    for band in range(BANDS):
        keys = ((hashes[seen] >> np.uint64(WIDTH * band)) & np.uint64(2**WIDTH - 1)).astype(np.uint16)
        for group in equal_groups(keys):
            members = seen[group]
            if len(members) > CROWD:
                crowded[members] = True
                continue
            found.extend(_close(hashes, members))
    if not found:
        return np.empty((0, 2), dtype=np.int64), int(crowded.sum())
    return np.unique(np.concatenate(found), axis=0), int(crowded.sum())


def _close(hashes: NDArray[np.uint64], members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    first, second = np.triu_indices(len(members), 1)
    apart = np.bitwise_count(hashes[members[first]] ^ hashes[members[second]])
    near = apart <= NEAR
    if near.any():
        yield np.sort(np.stack([members[first[near]], members[second[near]]], axis=1), axis=1)
