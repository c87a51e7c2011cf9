"""The files of a run: never overwritten, whole after a resume, and a picture that shows something."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrail.errors import CheckpointError, ConfigError
from vitrail.report import RunLog, create_run, plot_curves, read_rows

LargestFile = Callable[[int], AbstractContextManager[None]]


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "lr": 0.1 / epoch, "train_loss": 2.0 / epoch, "train_top1": 10.0 * epoch} | more


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    assert [create_run(tmp_path / "runs", None, "tiny").name for _ in range(3)] == ["tiny", "tiny-2", "tiny-3"]
    assert (tmp_path / "runs" / "tiny-3" / "last").is_dir()


def test_an_asked_name_that_is_taken_is_refused_with_the_way_on(tmp_path: Path) -> None:
    create_run(tmp_path, "mine", "tiny")
    with pytest.raises(ConfigError, match=r"^output\.name: \S+/mine exists; choose another, or go on with --resume"):
        create_run(tmp_path, "mine", "tiny")


def test_a_file_where_runs_should_go_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        ConfigError, match=r"^output\.root: \S+/runs is a file; choose another with output\.root=FOLDER"
    ):
        create_run(tmp_path / "runs", None, "tiny")


def test_a_folder_that_may_not_be_written_is_named(unprivileged: Path) -> None:
    with pytest.raises(ConfigError, match=r"^output\.root: \S+/runs cannot be written \(Permission denied\)"):
        create_run(unprivileged / "runs", None, "tiny")


def test_a_root_that_cannot_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^output\.root: /proc/vitrail cannot be written \("):
        create_run(Path("/proc/vitrail"), None, "tiny")


def test_rows_are_written_at_once_to_both_sinks(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.add(row(1, val_top1=20.0))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == row(1, val_top1=20.0)
    assert events(tmp_path)["val_top1"] == [(1, 20.0)]
    log.close()


def test_epochs_run_again_after_a_resume_are_not_doubled(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        log.add(row(epoch))
    log.close()
    kept = read_rows(tmp_path, 2)
    assert kept == [row(1), row(2)]
    log = RunLog(tmp_path, kept)
    log.add(row(3, train_loss=0.5))
    log.close()
    assert [r["epoch"] for r in read_rows(tmp_path, 3)] == [1, 2, 3]
    assert events(tmp_path)["train_loss"] == [(1, 2.0), (2, 1.0), (3, 0.5)]


def test_a_line_cut_by_a_crash_is_left_behind(tmp_path: Path) -> None:
    whole = json.dumps(row(1)) + "\n"
    (tmp_path / "metrics.jsonl").write_text(whole + whole.replace("1,", "2,", 1)[:20])
    assert read_rows(tmp_path, 1) == [row(1)]


@pytest.mark.parametrize("content", [None, "", "{", "[]\n", '{"epoch": 1}\n{"epo'])
def test_rows_that_are_missing_or_damaged_are_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: [01] of 2 epochs can be read, the rest is missing or"):
        read_rows(tmp_path, 2)


@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_a_picture_with_the_three_lines(tmp_path: Path, epochs: int) -> None:
    rows = [row(e, val_loss=2.2 / e, val_top1=9.0 * e % 90, val_top5=99.0) for e in range(1, epochs + 1)]
    plot_curves(rows, tmp_path / "curves.png", "run: model, 10 images")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((0x7B, 0x87, 0x94), (0x25, 0x63, 0xA8), (0xC2, 0x57, 0x1A)):
        assert (pixels == color).all(1).sum() > 20


def test_curves_of_a_run_that_was_not_evaluated_are_drawn(tmp_path: Path) -> None:
    plot_curves([row(1), row(2)], tmp_path / "curves.png", "run")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_full_disk_is_told_with_the_way_on(tmp_path: Path, largest_file: LargestFile) -> None:
    log = RunLog(tmp_path)
    with largest_file(10):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(File too large\); free space"):
            log.add(row(1))
        log.close()


def test_rows_survive_a_disk_that_fills_as_a_run_is_resumed(tmp_path: Path, largest_file: LargestFile) -> None:
    log = RunLog(tmp_path)
    for epoch in (1, 2, 3):
        log.add(row(epoch))
    log.close()
    rows = read_rows(tmp_path, 2)
    with (
        largest_file(10),
        pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(File too large\)"),
    ):
        RunLog(tmp_path, rows)
    assert read_rows(tmp_path, 3) == [row(1), row(2), row(3)]
