"""Rosters: names, labels and content hashes of a set's images, to find out what changed since they were written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.overlap import hash_sample
from vitrail.data.paths import Paths
from vitrail.data.sources import Source
from vitrail.errors import list_some


@dataclass(frozen=True, eq=False, kw_only=True)
class Roster:
    """Columns of n images, by which they are identified one by one."""

    names: Paths
    """Names that do not depend on where the set lies."""
    labels: NDArray[np.int64]
    """Numbers that are equal for the same class; for multi-label data, for the same classes."""
    contents: NDArray[np.int64]
    """(n, 2): hash of each file, or of its pixels; zeros where it is not known."""
    sizes: NDArray[np.int64]
    """Bytes of each file; 0 where they are not known."""

    @classmethod
    def of(
        cls,
        source: Source,
        contents: NDArray[np.uint64] | None = None,
        sizes: NDArray[np.int64] | None = None,
        *,
        read: bool = True,
    ) -> Self:
        """Make the roster of a source.

        Args:
            source: The images.
            contents: Hashes of their files, as far as they are known.
            sizes: Bytes of their files, as far as they are known.
            read: Whether a sample of images is read whose contents are not known.
        """
        n = len(source)
        labels = source.labels.astype(np.int64)
        if source.label_sets is not None:
            # a hash of each set of classes, as the number of a set depends on the order of the list
            digests = [
                hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in source.label_sets
            ]
            labels = np.frombuffer(b"".join(digests), np.int64)[labels]
        known = (
            np.zeros((n, 2), np.int64) if contents is None else np.array(contents).view(np.int64)
        )
        if read and not known.any(1).all():
            for index, content in hash_sample(source).items():
                known[index] = np.frombuffer(content, np.int64)
        sizes = np.zeros(n, np.int64) if sizes is None else sizes
        return cls(names=Paths.of(source.identities()), labels=labels, contents=known, sizes=sizes)

    def to_dict(self) -> dict[str, torch.Tensor]:
        """Return everything as tensors."""
        columns = {
            "text": self.names.text,
            "ends": self.names.ends,
            "labels": self.labels,
            "contents": self.contents,
            "sizes": self.sizes,
        }
        return {name: torch.from_numpy(column.copy()) for name, column in columns.items()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Rebuild what `to_dict` returned."""
        columns = {name: tensor.numpy() for name, tensor in saved.items()}
        return cls(names=Paths(columns.pop("text"), columns.pop("ends")), **columns)


@dataclass(frozen=True)
class Changes:
    """Names of the images by which a set differs from its roster."""

    gone: tuple[str, ...]
    """Images that are no longer there."""
    new: tuple[str, ...]
    """Images that were not there before."""
    relabelled: tuple[str, ...]
    """Images that have another class than before."""
    rewritten: tuple[str, ...]
    """Images whose contents changed under the same name."""

    @property
    def are_others(self) -> bool:
        """Whether images came or went, or labels changed."""
        return bool(self.gone or self.new or self.relabelled)

    def __str__(self) -> str:
        """List the changes, each kind with a count and examples."""
        kinds = {
            "are gone": self.gone,
            "are new": self.new,
            "have another class": self.relabelled,
            "have another content": self.rewritten,
        }
        texts = []
        for what, names in kinds.items():
            if names:
                texts.append(f"{len(names):,} {what} ({list_some(names)})")
        return ", ".join(texts)


def compare(before: Roster, now: Roster) -> Changes:
    """Return how a set of images differs from what it was."""
    # where each image stood before, by its name; -1 where it was not there
    gone = {name: index for index, name in enumerate(before.names)}
    known = np.array([gone.pop(name, -1) for name in now.names], np.int64)
    new = np.flatnonzero(known >= 0)
    old = known[new]
    # contents and sizes are compared where both are known
    is_known = before.contents[old].any(1) & now.contents[new].any(1)
    differs = is_known & (before.contents[old] != now.contents[new]).any(1)
    old_sizes = before.sizes[old]
    new_sizes = now.sizes[new]
    differs |= (old_sizes > 0) & (new_sizes > 0) & (old_sizes != new_sizes)

    def names_at(indices: NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(map(now.names.name, indices.tolist()))

    return Changes(
        gone=tuple(map(before.names.name, gone.values())),
        new=names_at(np.flatnonzero(known < 0)),
        relabelled=names_at(new[before.labels[old] != now.labels[new]]),
        rewritten=names_at(new[differs]),
    )
