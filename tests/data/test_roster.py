"""What a set's images are known again by, one by one, and how two sets differ."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.data.paths import Paths
from vitrail.data.roster import Changes, Roster, compare
from vitrail.data.sources import FileSource, PixelSource

NAMES = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 2), st.integers(0, 2)))


def source(folder: Path, **labels: int) -> FileSource:
    for name in labels:
        (folder / name).write_text(f"content of {name}")
    return FileSource(folder, Paths.of(map(str.encode, labels)), np.array([*labels.values()], np.int32), ("x", "y"), "")


def test_a_set_is_itself_and_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    roster = Roster.of(source(tmp_path, a=0, b=1, c=1))
    again = Roster.from_dict(roster.to_dict())
    assert compare(roster, again) == Changes((), (), (), ())
    assert not compare(again, Roster.of(source(tmp_path, c=1, a=0, b=1))).are_others  # whatever the order


def test_what_changed_is_named(tmp_path: Path) -> None:
    before = Roster.of(source(tmp_path, a=0, b=1, c=1, d=0))
    now = source(tmp_path, b=1, c=0, d=0, e=0)
    (tmp_path / "b").write_text("Content of b")
    changes = compare(before, Roster.of(now))
    assert changes == Changes(gone=("a",), new=("e",), relabelled=("c",), rewritten=("b",))
    assert changes.are_others
    assert str(changes) == "1 are gone (a), 1 are new (e), 1 have another class (c), 1 have another content (b)"


def test_contents_are_compared_as_far_as_they_are_known(tmp_path: Path) -> None:
    files = source(tmp_path, a=0, b=1)
    known, sizes = np.array([[1, 2], [3, 4]], np.uint64), np.array([5, 6])
    before = Roster.of(files, known, sizes, read=False)
    for contents, bytes_, rewritten in (
        (known, sizes, ()),
        (None, None, ()),
        (known + np.array([[0, 1], [0, 0]], np.uint64), sizes, ("a",)),
        (known * np.array([[1], [0]], np.uint64), sizes, ()),
        (None, np.array([5, 7]), ("b",)),
    ):
        assert compare(before, Roster.of(files, contents, bytes_, read=False)).rewritten == rewritten


def test_images_in_memory_are_known_by_their_pixels() -> None:
    pixels = np.arange(2 * 9, dtype=np.uint8).reshape(2, 3, 3)

    def roster(images: np.ndarray) -> Roster:
        return Roster.of(PixelSource("d", images, np.zeros(2, np.int32), ("x",), np.array(["d/0", "d/1"])))

    assert not compare(roster(pixels), roster(pixels.copy())).rewritten
    assert compare(roster(pixels), roster(pixels + np.array([[[0]], [[1]]], np.uint8))).rewritten == ("d/1",)


def test_sets_of_classes_are_compared_whatever_their_numbers(tmp_path: Path) -> None:
    files = source(tmp_path, a=0, b=1)
    sets = np.array([[True, False], [True, True]])

    def roster(labels: list[int], sets: np.ndarray) -> Roster:
        one = FileSource(files.folder, files.paths, np.array(labels, np.int32), files.classes, "", (), sets)
        return Roster.of(one)

    assert compare(roster([0, 1], sets), roster([1, 0], sets[::-1].copy())) == Changes((), (), (), ())
    assert compare(roster([0, 1], sets), roster([1, 1], sets)).relabelled == ("a",)


@given(NAMES, NAMES)
def test_differences_are_those_of_dictionaries(before: dict, now: dict) -> None:
    def roster(images: dict) -> Roster:
        columns = np.array([*images.values()], np.int64).reshape(-1, 2)
        contents = np.repeat(columns[:, 1:] + 1, 2, axis=1)
        return Roster(
            names=Paths.of(map(str.encode, images)), labels=columns[:, 0], contents=contents,
            sizes=np.zeros(len(images), np.int64),
        )  # fmt: skip

    changes = compare(roster(before), roster(now))
    assert set(changes.gone) == before.keys() - now.keys()
    assert set(changes.new) == now.keys() - before.keys()
    both = before.keys() & now.keys()
    assert set(changes.relabelled) == {name for name in both if before[name][0] != now[name][0]}
    assert set(changes.rewritten) == {name for name in both if before[name][1] != now[name][1]}


@pytest.mark.parametrize("size", [0, 1])
def test_a_set_may_be_small(size: int) -> None:
    images = np.zeros((size, 2, 2), np.uint8)
    empty = Roster.of(PixelSource("d", images, np.zeros(size, np.int32), ("x",), np.array(["d/0"][:size], object)))
    assert str(compare(empty, Roster.from_dict(empty.to_dict()))) == ""
