"""Find duplicates and near-duplicates among millions of images by their perceptual hashes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BANDS = 5
"""Parts that a hash is cut into."""
WIDTH = 13
"""Bits of a band."""
NEAR = 4
"""Most bits in which near-duplicates differ; of five bands of 13 bits, one is then equal."""
CROWD = 3000
"""Most images with an equal band that are compared; larger crowds are blank pages and the like."""


def find_equal(keys: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Return the indices of equal keys, each group of two or more in rising order.

    Args:
        keys: (n,), or (n, d) where a key has several numbers.
    """
    if not len(keys):
        return []
    rows = keys.reshape(len(keys), -1)
    order = np.lexsort(rows.T[::-1])
    differs_from_last = (rows[order[1:]] != rows[order[:-1]]).any(axis=1)
    begins = np.flatnonzero(np.concatenate([[True], differs_from_last]))
    lengths = np.diff(begins, append=len(rows))
    has_several = lengths > 1
    groups = []
    for begin, length in zip(
        begins[has_several].tolist(), lengths[has_several].tolist(), strict=True
    ):
        groups.append(order[begin : begin + length])
    return groups


def find_near_pairs(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], int]:
    """Return pairs of images whose hashes differ in at most NEAR bits, and share a band with no crowd.

    Args:
        hashes: (n,); 0 stands for an image without one.

    Returns:
        Pairs (m, 2), each once, the smaller index first; and how many images were in crowds, whose
        pairs were not compared by that band.
    """
    pairs: list[NDArray[np.int64]] = []
    crowded = np.zeros(len(hashes), dtype=bool)
    hashed = np.flatnonzero(hashes != 0)
    for band in range(BANDS):
        shifted = hashes[hashed] >> np.uint64(WIDTH * band)
        keys = (shifted & np.uint64(2**WIDTH - 1)).astype(np.uint16)
        for group in find_equal(keys):
            members = hashed[group]
            if len(members) > CROWD:
                crowded[members] = True
                continue
            pairs.extend(_pair_up(hashes, members))
    if not pairs:
        return np.empty((0, 2), dtype=np.int64), int(crowded.sum())
    return np.unique(np.concatenate(pairs), axis=0), int(crowded.sum())


def _pair_up(hashes: NDArray[np.uint64], members: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs (m, 2) of members whose hashes differ in at most NEAR bits, if there are any."""
    first, second = np.triu_indices(len(members), 1)
    apart = np.bitwise_count(hashes[members[first]] ^ hashes[members[second]])
    near = apart <= NEAR
    if near.any():
        pairs = np.stack([members[first[near]], members[second[near]]], axis=1)
        yield np.sort(pairs, axis=1)
