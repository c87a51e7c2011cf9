"""File names by the million, stored in two arrays instead of as many objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Paths:
    """File names as bytes, one after the other, and where each ends."""

    text: NDArray[np.uint8]
    """Bytes of all names."""
    ends: NDArray[np.int64]
    """End of each name in `text`."""

    @classmethod
    def of(cls, names: Iterable[bytes]) -> Paths:
        """Store names."""
        listed = list(names)
        ends = np.cumsum(list(map(len, listed)), dtype=np.int64)
        return cls(np.frombuffer(b"".join(listed), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        begin = int(self.ends[index - 1]) if index > 0 else 0
        return self.text[begin : int(self.ends[index])].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def name(self, index: int) -> str:
        """Return a name as text, with bytes that are no text as surrogates."""
        return os.fsdecode(self[index])

    def take(self, chosen: NDArray[np.bool_]) -> Paths:
        """Return the chosen names."""
        lengths = np.diff(self.ends, prepend=0)
        return Paths(self.text[np.repeat(chosen, lengths)], np.cumsum(lengths[chosen]))
