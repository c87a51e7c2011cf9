from pathlib import Path

import numpy as np
import pytest

from vitrail.data.paths import Paths
from vitrail.data.sketch import SIZE, shared, sketch
from vitrail.data.sources import FileSource


def numbered(first: int, last: int, folder: Path = Path("/nowhere")) -> FileSource:
    paths = Paths.of(b"%07d.jpg" % number for number in range(first, last))
    return FileSource(folder, paths, np.zeros(len(paths), np.int32), ("a", "b"), "numbered")


@pytest.mark.parametrize(("first", "last"), [(0, 500), (499, 700), (500, 700), (100, 110)])
def test_of_few_images_those_shared_are_counted(first: int, last: int) -> None:
    assert shared(numbered(first, last), sketch(numbered(0, 500))) == (max(min(last, 500) - first, 0), True)


@pytest.mark.parametrize("overlap", [0, 5_000, 20_000])
def test_of_many_images_those_shared_are_estimated(overlap: int) -> None:
    known = sketch(numbered(0, 100_000))
    assert len(known.split()) == SIZE
    assert len(known) < 20_000
    found, is_exact = shared(numbered(100_000 - overlap, 150_000), known)
    assert not is_exact
    assert found == pytest.approx(overlap, rel=0.35)


def test_a_file_of_another_size_is_another(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number:07d}.jpg").write_bytes(b"x" * number)
    known = sketch(numbered(0, 3, tmp_path))
    assert shared(numbered(0, 3, tmp_path), known) == (3, True)
    (tmp_path / "0000001.jpg").write_bytes(b"more")
    assert shared(numbered(0, 3, tmp_path), known) == (2, True)
