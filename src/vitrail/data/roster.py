"""Which images a set has, one by one, and how it differs from what it was: in names, labels or contents."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.overlap import sampled_contents
from vitrail.data.paths import Paths
from vitrail.data.sources import Source
from vitrail.errors import few


@dataclass(frozen=True, eq=False, kw_only=True)
class Roster:
    """Columns of n images."""

    names: Paths
    """What tells them apart wherever the set lies."""
    labels: NDArray[np.int64]
    """Equal for the same class, or the same classes."""
    contents: NDArray[np.int64]
    """(n, 2): hash of the file, or of pixels; zeros where it is not known."""
    sizes: NDArray[np.int64]
    """Bytes of the file; 0 where they are not known."""

    @classmethod
    def of(
        cls,
        source: Source,
        contents: NDArray[np.uint64] | None = None,
        sizes: NDArray[np.int64] | None = None,
        *,
        read: bool = True,
    ) -> Self:
        """Gather what a source's images are known by.

        Args:
            source: The images.
            contents: Hashes of their files, as far as they are known.
            sizes: Bytes of their files, as far as they are known.
            read: Read those of a sample whose contents are not known.
        """
        n, labels = len(source), source.labels.astype(np.int64)
        if source.label_sets is not None:  # whose numbers follow from the order of a list
            digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in source.label_sets]
            labels = np.frombuffer(b"".join(digests), np.int64)[labels]
        known = np.zeros((n, 2), np.int64) if contents is None else np.array(contents).view(np.int64)
        if read and not known.any(1).all():
            for index, content in sampled_contents(source).items():
                known[index] = np.frombuffer(content, np.int64)
        sizes = np.zeros(n, np.int64) if sizes is None else sizes
        return cls(names=Paths.of(source.identities()), labels=labels, contents=known, sizes=sizes)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors."""
        columns = {"text": self.names.text, "ends": self.names.ends}
        columns |= {"labels": self.labels, "contents": self.contents, "sizes": self.sizes}
        return {name: torch.from_numpy(column.copy()) for name, column in columns.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` returned."""
        columns = {name: tensor.numpy() for name, tensor in saved.items()}
        return cls(names=Paths(columns.pop("text"), columns.pop("ends")), **columns)


@dataclass(frozen=True)
class Changes:
    """What became of a set's images, by their names."""

    gone: tuple[str, ...]
    new: tuple[str, ...]
    relabelled: tuple[str, ...]
    rewritten: tuple[str, ...]
    """Images whose contents changed under the same name."""

    @property
    def are_others(self) -> bool:
        """Whether there are other images than there were, or other labels."""
        return bool(self.gone or self.new or self.relabelled)

    def __str__(self) -> str:
        """Say it, each kind with a count and examples."""
        kinds = {
            "are gone": self.gone, "are new": self.new, "have another class": self.relabelled,
            "have another content": self.rewritten,
        }  # fmt: skip
        return ", ".join(f"{len(names):,} {what} ({few(names)})" for what, names in kinds.items() if names)


def compare(before: Roster, now: Roster) -> Changes:
    """Return how a set of images differs from what it was."""
    there = {name: index for index, name in enumerate(before.names)}
    pairs = [(there.pop(name, -1), index) for index, name in enumerate(now.names)]
    both = np.array([pair for pair in pairs if pair[0] >= 0], np.int64).reshape(-1, 2)
    old, new = both[:, 0], both[:, 1]
    is_known = before.contents[old].any(1) & now.contents[new].any(1)
    differs = is_known & (before.contents[old] != now.contents[new]).any(1)
    sizes = (before.sizes[old], now.sizes[new])
    differs |= (sizes[0] > 0) & (sizes[1] > 0) & (sizes[0] != sizes[1])

    def named(indices: NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(now.names.name(int(index)) for index in indices)

    return Changes(
        gone=tuple(before.names.name(index) for index in there.values()),
        new=tuple(now.names.name(index) for known, index in pairs if known < 0),
        relabelled=named(new[before.labels[old] != now.labels[new]]),
        rewritten=named(new[differs]),
    )
