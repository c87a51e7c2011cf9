"""The best weights of a run, whatever moment it is killed at."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.forked import SERVER
from vitrail.errors import CheckpointError
from vitrail.images.preprocess import Preprocess
from vitrail.training.run.best_files import BestFiles
from vitrail.weights.checkpoint import Record, read_metrics

KEEP = 3


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "val_top1": 10.0 * epoch, "lr": 0.1 / 3, "train_loss": None} | more


def record(numbers: dict[str, Any]) -> Record:
    preprocess = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Record(model="tnt_s_patch16_224", options={}, classes=("a",), preprocess=preprocess, metrics=numbers)


def put(files: BestFiles, epoch: int, before: Sequence[int], elapsed_s: float = 0.0) -> None:
    weights = {"epoch": torch.tensor([float(epoch)])}
    files.put(weights, record(row(epoch, elapsed_s=elapsed_s)), [row(epoch, elapsed_s=0.0) for epoch in before])


def rows(*epochs: int) -> list[dict[str, Any]]:
    return [row(epoch, elapsed_s=0.0) for epoch in epochs]


def kept(folder: Path) -> list[float]:
    """The epochs of the files in their order, each by its weights and by its row."""
    names = [folder / "best.safetensors", *sorted(folder.glob("best-*.safetensors"))]
    found = [float(load_file(name)["epoch"]) for name in names]
    assert [(read_metrics(name) or {})["epoch"] for name in names] == found
    return found


def begun(folder: Path, keep: int, *epochs: int) -> BestFiles:
    """Files of a run whose last save knows so many epochs, the last one the best."""
    (folder / "last").mkdir(parents=True)
    files = BestFiles(folder, keep)
    for number, epoch in enumerate(epochs):
        put(files, epoch, epochs[:number][::-1])
    best = epochs[::-1][:keep]
    files.saved(rows(*best))
    return files


def test_the_best_come_first_and_the_last_of_them_fall_out(tmp_path: Path) -> None:
    begun(tmp_path, KEEP, 1, 2, 4, 7)
    assert kept(tmp_path) == [7, 4, 2]
    assert not list((tmp_path / "last").iterdir())


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_what_the_last_save_knows_is_there_again_after_any_number_of_better_ones(tmp_path: Path, keep: int) -> None:
    files = begun(tmp_path, keep, 1, 2, 3)
    before = [3, 2, 1][:keep]
    put(files, 4, before)
    put(files, 5, [4, *before])
    assert kept(tmp_path) == [5, 4, *before][:keep]
    again = BestFiles(tmp_path, keep, rows(*before))
    assert again.settle(rows(*before)) == rows(*before)
    assert kept(tmp_path) == before
    assert not list((tmp_path / "last").iterdir())


def test_an_epoch_that_is_made_again_takes_its_own_place(tmp_path: Path) -> None:
    files = begun(tmp_path, KEEP, 1, 2, 3)
    put(files, 4, [3, 2, 1])
    files = BestFiles(tmp_path, KEEP, rows(3, 2, 1))
    files.settle(rows(3, 2, 1))
    put(files, 4, [3, 2, 1], elapsed_s=9.0)
    assert kept(tmp_path) == [4, 3, 2]


def test_the_names_of_files_that_were_mixed_up_are_put_right(tmp_path: Path) -> None:
    begun(tmp_path, KEEP, 1, 2, 3)
    first, third = tmp_path / "best.safetensors", tmp_path / "best-3.safetensors"
    first.rename(tmp_path / "x")
    third.rename(first)
    (tmp_path / "x").rename(third)
    assert kept(tmp_path) == [1, 2, 3]
    BestFiles(tmp_path, KEEP).settle(rows(3, 2, 1))
    assert kept(tmp_path) == [3, 2, 1]


def test_weights_that_are_gone_or_damaged_are_not_counted(tmp_path: Path) -> None:
    begun(tmp_path, KEEP, 1, 2, 3)
    (tmp_path / "best.safetensors").write_bytes(b"rot")
    assert BestFiles(tmp_path, KEEP).settle(rows(3, 2, 1)) == rows(2, 1)
    assert kept(tmp_path) == [2, 1]


def test_files_of_which_the_save_knows_none_stay_until_there_are_better_ones(tmp_path: Path) -> None:
    begun(tmp_path, KEEP, 1, 2, 3)
    files = BestFiles(tmp_path, KEEP)
    assert files.settle([]) == []
    assert kept(tmp_path) == [3, 2, 1]
    put(files, 4, [])
    assert kept(tmp_path) == [4]


def test_a_full_disk_leaves_the_best_as_it_was_until_it_is_tried_again(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    files = begun(tmp_path, KEEP, 1, 2, 3)
    for _ in range(2):
        refusal = pytest.raises(CheckpointError, match=r"best\.safetensors: cannot be written \(File too large\)")
        with refusal, largest_file(100):
            put(files, 4, [3, 2, 1])
        assert kept(tmp_path)[0] == 3
    put(files, 5, [4, 3, 2])  # whose weights never came to the disk
    assert kept(tmp_path) == [5, 3, 2]


@pytest.mark.thorough
@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("links", [True, False])
def test_a_kill_at_any_file_operation_loses_none_that_the_save_knows(tmp_path: Path, keep: int, links: bool) -> None:
    before, operation = [3, 2, 1][:keep], 0
    while True:
        folder = tmp_path / str(operation)
        begun(folder, keep, 1, 2, 3)
        writer = SERVER.Process(target=_put_until, args=(folder, keep, before, operation, links))
        writer.start()
        writer.join()
        assert (folder / "best.safetensors").exists()
        files = BestFiles(folder, keep, rows(*before))
        assert files.settle(rows(*before)) == rows(*before)
        assert kept(folder) == before
        put(files, 4, before)
        assert kept(folder) == [4, *before][:keep]
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        operation += 1
    assert operation > 2 * keep


def _put_until(folder: Path, keep: int, before: list[int], operation: int, links: bool) -> None:
    """Write better weights, and be killed before a file operation."""
    left = operation

    def count(event: str, rest: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.rename", "os.remove", "os.link") or (event == "open" and "w" in str(rest[1])):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    def refuse(*rest: Any) -> None:
        raise PermissionError

    if not links:  # as on exFAT
        os.link = refuse
    import sys

    sys.addaudithook(count)
    put(BestFiles(folder, keep, rows(*before)), 4, before)
