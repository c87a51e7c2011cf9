from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from vitrail.data.overlap import SIZE, count_overlap, make_sketch
from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, Source


@dataclass(frozen=True)
class Numbered:
    """Images that are made of their number, as far as a sketch looks at them."""

    first: int
    last: int
    salt: bytes = b""

    def __len__(self) -> int:
        return self.last - self.first

    def identities(self) -> Iterator[bytes]:
        return (b"%07d.jpg" % number for number in range(self.first, self.last))

    def encoded(self, index: int) -> bytes:
        return b"%d" % (self.first + index) + self.salt


def numbered(first: int, last: int, salt: bytes = b"") -> Source:
    return cast(Source, Numbered(first, last, salt))


@pytest.mark.parametrize(("first", "last"), [(0, 500), (499, 700), (500, 700), (100, 110)])
def test_of_few_images_those_shared_are_counted(first: int, last: int) -> None:
    assert count_overlap(numbered(first, last), make_sketch(numbered(0, 500))) == (max(min(last, 500) - first, 0), True)


@pytest.mark.parametrize("overlap", [0, 5_000, 20_000])
def test_of_many_images_those_shared_are_estimated(overlap: int) -> None:
    known = make_sketch(numbered(0, 100_000))
    assert len(known.split()) == SIZE
    assert len(known) < 25_000
    found, is_exact = count_overlap(numbered(100_000 - overlap, 150_000), known)
    assert not is_exact
    assert found == pytest.approx(overlap, rel=0.35)


def test_other_images_of_the_same_names_are_others() -> None:
    assert count_overlap(numbered(0, 500, b"other"), make_sketch(numbered(0, 500))) == (0, True)


def test_what_cannot_be_read_is_no_image_that_was_trained_on(tmp_path: Path) -> None:
    paths = Paths.of(b"%d.jpg" % number for number in range(3))
    source = FileSource(tmp_path, paths, np.zeros(3, np.int32), ("a", "b"), "three")
    (tmp_path / "1.jpg").write_bytes(b"x")
    assert count_overlap(source, make_sketch(source)) == (1, True)
