"""What is kept of a teacher's answers, and files of them that are torn, damaged, shared, or of something else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vitrail.distillation.answers import ABOUT, MARK, AnswerFiles, Layout, open_folder
from vitrail.errors import CheckpointError, ConfigError
from vitrail.files import temporary_name

CPU = torch.device("cpu")


def answers(layout: Layout, keys: range, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """Return packed answers and the logarithms of probabilities that they were made of."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(len(keys), layout.num_classes, generator=generator)
    logarithms = logits.log_softmax(1)
    return layout.pack(np.array(keys, np.uint64), logarithms, None), logarithms


def read(folder: Path, layout: Layout, view: int = 0) -> tuple[np.ndarray, list[str]]:
    told: list[str] = []
    files = AnswerFiles(folder, layout, told.append)
    rows = files.read(view)
    files.close()
    return rows, told


def test_of_few_classes_all_is_kept_to_half_precision() -> None:
    layout = Layout(5, 10)
    rows, logarithms = answers(layout, range(7))
    kept, vectors = layout.unpack(rows, CPU)
    assert vectors.shape == (7, 0)
    assert_close(kept, logarithms, rtol=2**-10, atol=2**-10)


def test_the_classes_that_are_not_kept_share_what_is_left() -> None:
    layout = Layout(1000, 10)
    rows, logarithms = answers(layout, range(4))
    kept, _ = layout.unpack(rows, CPU)
    for ours, theirs in zip(kept, logarithms, strict=True):
        order = theirs.argsort(descending=True)
        assert_close(ours[order[:10]], theirs[order[:10]], rtol=2**-10, atol=2**-10)
        (rest,) = ours[order[10:]].unique()
        assert float(990 * rest.exp()) == pytest.approx(float(theirs[order[10:]].exp().sum()), rel=0.01)
    assert_close(kept.exp().sum(1), torch.ones(4), rtol=0.01, atol=0)


def test_an_answer_takes_fifty_bytes() -> None:
    assert Layout(1000, 10).row.itemsize == 50
    assert Layout(100_000, 10).row.itemsize == 70
    assert Layout(1000, 10, 384).row.itemsize == 50 + 2 * 384


def test_vectors_come_back_beside_the_logits() -> None:
    layout = Layout(3, 2, 4)
    vectors = torch.arange(8.0).view(2, 4)
    rows = layout.pack(np.arange(2, dtype=np.uint64), torch.zeros(2, 3).log_softmax(1), vectors)
    assert torch.equal(layout.unpack(rows, CPU)[1], vectors)


def test_files_of_several_processes_are_read_as_one(tmp_path: Path) -> None:
    layout = Layout(20, 3)
    first, second = (AnswerFiles(tmp_path, layout, pytest.fail) for _ in range(2))
    for files, keys in ((first, range(10, 20)), (second, range(5, 15))):
        files.read(4)
        files.add(answers(layout, keys)[0])
        files.read(5)
        files.add(answers(layout, range(3), seed=9)[0])
    first.close()
    second.close()
    rows, _ = read(tmp_path, layout, 4)
    assert rows["key"].tolist() == list(range(5, 20))
    assert len(read(tmp_path, layout, 5)[0]) == 3
    assert len(read(tmp_path, layout, 0)[0]) == 0
    assert len(list(tmp_path.iterdir())) == 2
    # what is written later is found by who has read before
    third = AnswerFiles(tmp_path, layout, pytest.fail)
    assert len(first.read(5)) == 3
    third.read(5)
    third.add(answers(layout, range(100, 140))[0])
    third.write()
    assert len(first.read(5)) == 43
    third.close()


def written(folder: Path, layout: Layout, chunks: int = 3) -> Path:
    files = AnswerFiles(folder, layout, pytest.fail)
    files.read(0)
    for number in range(chunks):
        files.add(answers(layout, range(10 * number, 10 * number + 10), seed=number)[0])
        files.write()
    files.close()
    (path,) = folder.iterdir()
    return path


def test_a_torn_end_is_passed_over_wherever_it_was_cut(tmp_path: Path) -> None:
    layout = Layout(20, 3)
    whole = written(tmp_path, layout).read_bytes()
    (path,) = tmp_path.iterdir()
    last = whole.rindex(MARK)
    for size in (*range(last, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:size])
        rows, told = read(tmp_path, layout)
        assert rows["key"].tolist() == list(range(20))
        assert not told
    for size in (0, 5, 17):
        path.write_bytes(whole[:size])
        assert len(read(tmp_path, layout)[0]) == 0


def test_a_flipped_byte_costs_one_chunk_and_is_told(tmp_path: Path) -> None:
    layout = Layout(20, 3)
    whole = written(tmp_path, layout).read_bytes()
    (path,) = tmp_path.iterdir()
    good = {int(row["key"]): row.tobytes() for row in read(tmp_path, layout)[0]}
    second = whole.index(MARK, whole.index(MARK) + 1)
    third = whole.rindex(MARK)
    for at in range(second, third):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        rows, told = read(tmp_path, layout)
        assert rows["key"].tolist() == [*range(10), *range(20, 30)]
        assert all(good[int(row["key"])] == row.tobytes() for row in rows)
        (line,) = told
        assert line.startswith(f"{path}: is damaged: ")
        assert line.endswith(" are left out and computed anew")


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    layout = Layout(20, 3)
    written(tmp_path, layout)
    (tmp_path / "odd.answers").mkdir()
    rows, told = read(tmp_path, layout)
    assert len(rows) == 30
    assert told == [
        f"{tmp_path / 'odd.answers'}: cannot be read (Is a directory); its answers are left out and computed anew"
    ]


def test_a_full_disk_is_one_line(tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]) -> None:
    layout = Layout(20, 3)
    files = AnswerFiles(tmp_path, layout, pytest.fail)
    files.read(0)
    files.add(answers(layout, range(100))[0])
    with largest_file(1000), pytest.raises(CheckpointError) as caught:
        files.write()
    assert str(caught.value) == (
        f"{tmp_path}: cannot be written (File too large); free space, or set distill.cache to another folder or to "
        "false"
    )
    files.close()
    assert len(read(tmp_path, layout)[0]) == 100


def test_a_folder_of_other_answers_is_refused_with_what_differs(tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    about = {"teacher": {"digest": "a", "size": (32, 32)}, "seed": 0, "classes": ["x", "y"]}
    folder.mkdir()
    temporary_name(folder / ABOUT).touch()  # of a process that writes it now, or was killed
    open_folder(folder, about, is_given=True)
    open_folder(folder, about, is_given=True)
    with pytest.raises(ConfigError) as caught:
        open_folder(folder, {**about, "teacher": {"digest": "b", "size": (32, 32)}, "seed": 1}, is_given=True)
    assert str(caught.value) == (
        f"distill.cache {folder}: holds other answers: teacher.digest is 'a' there and 'b' here, seed is 0 there and 1 "
        "here; give another folder, or leave it out"
    )
    (folder / ABOUT).write_text("{")
    with pytest.raises(CheckpointError, match=r"is damaged; delete .*, and its answers are made anew$"):
        open_folder(folder, about, is_given=True)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        open_folder(file, {}, is_given=True)
    assert str(caught.value) == f"{file}: is a file, and a folder is wanted there; name another"
    assert file.read_text() == "mine"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(ConfigError) as caught:
        open_folder(tmp_path, {}, is_given=True)
    assert str(caught.value) == (
        f"distill.cache {tmp_path}: holds no answers of a teacher, and is not empty; give a folder of its own"
    )
