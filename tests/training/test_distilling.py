"""Runs that learn from a teacher: live and from the cache, stopped, killed, shared out and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrail.training.step
from support.forked import Python, python, wait_until
from support.runs import (
    EVERYTHING,
    Notebook,
    Signals,
    assert_same_run,
    command,
    has_saved,
    last_state,
    rows,
    run,
    settle,
    torchrun,
)
from support.tiny_model import save_tiny
from vitrail.distillation.answers import AnswerFiles, Layout
from vitrail.distillation.teacher import Teacher
from vitrail.errors import CheckpointError, ConfigError, DataError, Stopped, TrainingError
from vitrail.images.preprocess import Preprocess
from vitrail.training.preview import preview
from vitrail.training.start import begin
from vitrail.training.step import StepContext
from vitrail.weights.checkpoint import save_model
from vitrail.weights.loading import open_model

MIXED_UP = [setting for setting in EVERYTHING if not setting.startswith("model.")]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """Return the setting of an untrained teacher for images of another size than the students'."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    preprocess = Preprocess(size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
    path = save_tiny(folder, preprocess, classes=("red", "gray", "blue", "green"), image_size=48)
    return f"distill.teacher={path}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail" / "answers"


def seconds(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


OTHER_LOSSES = [pytest.param(loss, marks=pytest.mark.thorough) for loss in ("hard", "dkd", "feature")]


@pytest.mark.parametrize("loss", ["soft", *OTHER_LOSSES])
def test_a_run_from_the_cache_equals_one_without_to_the_last_bit(
    image_folder: Path, teacher: str, cache: Path, loss: str
) -> None:
    settings = [teacher, f"distill.loss={loss}", "distill.temperature=2", "train.epochs=2", "distill.topk=2"]
    if loss != "dkd":
        settings += MIXED_UP
    live = run(image_folder, *settings, "train.epochs=2", "distill.cache=false", "output.name=live").folder
    assert not cache.exists()
    first = run(image_folder, *settings, "train.epochs=2", "output.name=first").folder
    (folder,) = cache.iterdir()
    stored = {path: path.read_bytes() for path in folder.iterdir()}
    second = run(image_folder, *settings, "train.epochs=2", "output.name=second").folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == stored  # nothing was computed
    assert_same_run(first, live)
    assert_same_run(second, live)


@pytest.mark.thorough
def test_a_teacher_sees_the_views_that_the_device_makes(image_folder: Path, teacher: str, cache: Path) -> None:
    settings = [teacher, *MIXED_UP, "augment.device=true", "train.epochs=2"]
    live = run(image_folder, *settings, "distill.cache=false", "output.name=live").folder
    first = run(image_folder, *settings, "output.name=first").folder
    second = run(image_folder, *settings, "output.name=second").folder
    assert_same_run(first, live)
    assert_same_run(second, live)
    assert len(list(cache.iterdir())) == 1
    run(image_folder, *settings, "augment.device=false", "output.name=plain")
    assert len(list(cache.iterdir())) == 2


@pytest.mark.thorough
def test_a_run_that_was_killed_or_stopped_goes_on_to_the_last_bit(image_folder: Path, teacher: str) -> None:
    settings = (*MIXED_UP, "model.drop_path_rate=0.2", teacher, "train.epochs=8", "output.save_every_updates=1")
    root = image_folder.parent / "runs"
    process = Python(*command(image_folder, *settings, "output.name=killed"))
    try:
        wait_until(has_saved(root / "killed", 5), process)
    finally:
        process.kill()
    assert last_state(root / "killed")["epoch"] < 8
    run(image_folder, *settings, "output.name=killed", resume=root / "killed")
    run(image_folder, *settings, "distill.cache=false", "output.name=whole")
    assert_same_run(root / "killed", root / "whole")


@pytest.mark.parametrize("loss", ["feature", pytest.param("soft", marks=pytest.mark.thorough)])
def test_a_run_with_everything_goes_on_to_the_last_bit(image_folder: Path, teacher: str, loss: str) -> None:
    settings = (
        *MIXED_UP, teacher, "train.epochs=3", "optim.sam_rho=0.05", "augment.repeats=2", f"distill.loss={loss}",
        f"distill.mixed={loss == 'soft'}", "optim.layer_decay=0.7", "optim.name=muon",
    )  # fmt: skip
    whole = run(image_folder, *settings, "output.name=whole").folder
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=stopped", display=Signals(4))
    stopped = whole.with_name("stopped")
    run(image_folder, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


def test_the_projection_is_saved_and_no_weight_file_has_it(image_folder: Path, teacher: str) -> None:
    folder = run(image_folder, teacher, "distill.loss=feature", "train.epochs=2", "ema.decay=0.5").folder
    assert "head.teacher_projection.weight" in last_state(folder)["model"]
    assert not [name for name in load_file(folder / "best.safetensors") if "projection" in name]
    forked = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=forked", fork=folder)
    assert "head.teacher_projection.weight" not in last_state(forked.folder)["model"]
    with pytest.raises(ConfigError) as caught:
        run(image_folder, teacher, "distill.loss=feature", "train.compile=true")
    assert str(caught.value) == (
        "distill.loss=feature does not go with train.compile=true; drop one, or take distill.loss=soft"
    )


@pytest.mark.thorough
def test_fixed_views_come_again_and_later_epochs_ask_no_teacher(
    image_folder: Path, teacher: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    answer = Teacher.answer

    def count(self: Teacher, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        asked.append(len(pixels))
        return answer(self, pixels)

    monkeypatch.setattr(Teacher, "answer", count)
    views = run(image_folder, teacher, "distill.views=2", "train.epochs=5", "output.name=views").folder
    assert sum(asked) == 2 * 24
    # the first epochs of new views are the same views
    run(image_folder, teacher, "train.epochs=2", "output.name=first")
    assert sum(asked) == 2 * 24
    assert len(list(cache.iterdir())) == 1
    live = ("distill.views=2", "distill.cache=false", "train.epochs=5", "output.name=live")
    assert_same_run(run(image_folder, teacher, *live).folder, views)
    assert sum(asked) == 7 * 24


@pytest.mark.parametrize("loss", ["soft", pytest.param("feature", marks=pytest.mark.thorough)])
def test_two_processes_keep_the_answers_of_one_and_make_its_updates(
    image_folder: Path, teacher: str, loss: str
) -> None:
    root = image_folder.parent / "runs"
    settings = (
        teacher,
        f"distill.loss={loss}",
        "train.epochs=3",
        "schedule.warmup_epochs=0",
        "optim.lr=1e-3",
        "train.accumulate=2",
    )
    alone = run(image_folder, *settings, f"distill.cache={root / 'one'}", "output.name=alone").folder
    words = command(image_folder, *settings, f"distill.cache={root / 'two'}", "output.name=pair")
    done = python(*torchrun(2, *words))
    assert done.returncode == 0, done.stderr
    layout = Layout(3, 10, 48 if loss == "feature" else 0)
    for epoch in range(3):
        one, two = (AnswerFiles(root / name, layout, pytest.fail).read(epoch) for name in ("one", "two"))
        assert one.tobytes() == two.tobytes()
        assert len(one) == 24
    assert len(list((root / "two").glob("*.answers"))) == 2
    for first, second in zip(rows(alone), rows(alone.with_name("pair")), strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
        assert first["train_agreement"] == pytest.approx(second["train_agreement"])
        assert first["val_agreement"] == pytest.approx(second["val_agreement"])


def test_damaged_answers_are_told_and_computed_anew(image_folder: Path, teacher: str, cache: Path) -> None:
    settings = (teacher, "train.epochs=2")
    first = run(image_folder, *settings, "output.name=first").folder
    (path,) = cache.glob("*/*.answers")
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    display = Notebook()
    second = run(image_folder, *settings, "output.name=second", display=display).folder
    assert_same_run(second, first)
    told = [line for line in display.warnings if "answers" in line]
    assert told == [f"{path}: is damaged: 24 answers are left out and computed anew"]


def test_the_teacher_is_shown_and_kept_and_agreement_is_measured(image_folder: Path, teacher: str) -> None:
    display = Notebook()
    folder = run(image_folder, teacher, "train.epochs=2", "train.eval_first=true", display=display).folder
    path = teacher.partition("=")[2]
    record = open_model(folder / "best.safetensors").record
    known = record.provenance["teacher"]
    assert known["file"] == path
    assert known["val"]["n"] == 12
    line = (
        f"teacher {path}: tnt_ti_patch16_224, digest {known['digest'][:16]}, top-1 {known['val']['top1']:.2f} % of 12"
    )
    assert f"{line} validation images" in display.notes
    first, *others = rows(folder)
    assert 0 <= first["val_agreement"] <= 100
    assert all({"train_agreement", "val_agreement"} <= row.keys() for row in others)
    assert all("teacher_s" in row for row in seconds(folder)[1:])
    page = (folder / "report" / "report.html").read_text()
    assert "Agreement with the teacher" in page


def test_a_student_that_is_its_teacher_agrees_with_it(image_folder: Path) -> None:
    path = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=teacher").folder
    weights = path / "best.safetensors"
    settings = (f"model.weights={weights}", f"distill.teacher={weights}", "distill.weight=1", "optim.lr=1e-9")
    more = ("schedule.warmup_epochs=0", "schedule.min_lr=0", "train.epochs=1", "train.eval_first=true")
    for row in rows(run(image_folder, *settings, *more, "output.name=student").folder):
        assert row["val_agreement"] == 100
        assert row.get("train_agreement", 100) == 100
        assert row["train_loss"] is None or abs(row["train_loss"]) < 1e-4


def test_a_micro_batch_without_images_has_targets_too(image_folder: Path, teacher: str) -> None:
    for path in (image_folder / "train" / "red").iterdir():
        path.write_bytes(b"no image")
    folder = run(image_folder, teacher, "train.batch_size=2", "train.accumulate=2", "train.epochs=1",
                 "schedule.warmup_epochs=0").folder  # fmt: skip
    assert rows(folder)[0]["n_bad"] == 8


@pytest.mark.thorough
def test_short_memory_makes_the_same_updates(image_folder: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (teacher, "distill.cache=false", "train.epochs=2", "augment.mixup=0.8")
    whole = rows(run(image_folder, *settings, "output.name=whole").folder)
    accumulate = vitrail.training.step._accumulate_gradients
    asked: list[int] = []
    answer = Teacher.answer

    def count(self: Teacher, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        asked.append(len(pixels))
        return answer(self, pixels)

    def short_while_whole(context: StepContext, *rest: Any) -> torch.Tensor:
        sums = accumulate(context, *rest)
        if context.memory.parts == 1:
            raise torch.OutOfMemoryError("out of memory, as a GPU says it")
        return sums

    monkeypatch.setattr(Teacher, "answer", count)
    monkeypatch.setattr("vitrail.training.step._accumulate_gradients", short_while_whole)
    parted = rows(run(image_folder, *settings, "output.name=parted").folder)
    assert sum(asked) == 2 * 24, "what is begun again has its answers"
    for first, second in zip(whole, parted, strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
        assert first["train_agreement"] == pytest.approx(second["train_agreement"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["distill.weight=0"], "distill.weight is 0.0; it must be above 0 and at most 1"),
        (["distill.temperature=0"], "distill.temperature is 0.0; it must be above 0"),
        (["distill.topk=0"], "distill.topk is 0; it must be at least 1"),
        (["distill.views=0"], "distill.views is 0; it must be at least 1"),
        (["distill.cache=0"], ""),
        (
            ["distill.mixed=true", "distill.cache=kept"],
            "distill.cache=kept cannot keep answers to mixed images, which never come again; set cache to null, or "
            "mixed to false",
        ),
        (
            ["distill.mixed=true", "distill.loss=dkd"],
            "distill.mixed does not go with loss=dkd, which needs the class of an image",
        ),
        (
            ["distill.teacher=x", "distill.loss=dkd", "augment.mixup=0.8"],
            "distill.loss is dkd, which needs the class of an image, and augment.mixup=0.8 mixes several; set it to "
            "its default, or distill.loss to soft",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], expected: str) -> None:
    if not expected:  # a folder may be called 0
        assert settle(Path("images"), *settings).distill.cache == "0"
        return
    with pytest.raises(ConfigError) as caught:
        settle(Path("images"), *settings)
    assert str(caught.value) == expected


def test_false_and_null_say_where_answers_are_kept() -> None:
    values = [settle(Path("images"), f"distill.cache={word}").distill.cache for word in ("false", "null", "kept")]
    assert values == [False, None, "kept"]


def test_settings_without_effect_are_told() -> None:
    def told(*words: str) -> list[str]:
        start = begin(None, ["data.name=digits", *words])
        return [text for _, text in start.remarks if text.startswith("distill")]

    assert told("distill.weight=0.3", "distill.views=2") == [
        "distill.weight=0.3 and distill.views=2: do nothing, since distill.teacher is null"
    ]
    assert told("distill.teacher=x", "distill.loss=hard", "distill.temperature=2", "distill.beta=1") == [
        "distill.temperature=2.0: does nothing, since distill.loss is hard",
        "distill.beta=1.0: does nothing, since distill.loss is not dkd",
    ]
    assert told("distill.teacher=x", "distill.mixed=true") == [
        "distill.mixed=true: does nothing, since nothing is mixed or erased"
    ]


def test_answers_of_other_views_in_a_folder_are_refused(image_folder: Path, teacher: str) -> None:
    kept = image_folder.parent / "kept"
    settings = (teacher, "train.epochs=1", "schedule.warmup_epochs=0", f"distill.cache={kept}")
    run(image_folder, *settings, "output.name=first")
    for change, differing in (
        ("augment.hflip=0", "view.hflip is 0.5 there and 0.0 here"),
        ("train.seed=1", "seed is 0 there and 1 here"),
        ("distill.topk=2", "topk is 3 there and 2 here"),
    ):
        with pytest.raises(ConfigError) as caught:
            run(image_folder, *settings, change, "output.name=second")
        assert str(caught.value) == (
            f"distill.cache {kept}: holds other answers: {differing}; give another folder, or leave it out"
        )
    shutil.copy(next((image_folder / "train" / "red").iterdir()), image_folder / "train" / "red" / "more.jpg")
    with pytest.raises(ConfigError, match=r"holds other answers: images is '\w+' there and '\w+' here, contents is"):
        run(image_folder, *settings, "output.name=second")


def test_a_student_that_is_normalised_otherwise_shares_the_answers(image_folder: Path, teacher: str) -> None:
    kept = image_folder.parent / "kept"
    settings = (teacher, "train.epochs=1", "schedule.warmup_epochs=0", f"distill.cache={kept}")
    run(image_folder, *settings, "output.name=first")
    stored = {path: path.read_bytes() for path in kept.iterdir()}
    run(image_folder, *settings, "preprocess.mean=[0.1,0.2,0.3]", "preprocess.std=[0.3,0.2,0.1]", "output.name=second")
    assert {path: path.read_bytes() for path in kept.iterdir()} == stored


@pytest.mark.thorough
def test_another_teacher_of_the_same_name_is_refused_when_a_run_goes_on(image_folder: Path, tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    settings = (f"distill.teacher={path}", "train.epochs=3")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(4))
    folder = image_folder.parent / "runs" / "tiny"
    trained = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=other").folder
    shutil.copy(trained / "best.safetensors", path)
    with pytest.raises(CheckpointError) as caught:
        run(image_folder, *settings, resume=folder)
    assert str(caught.value).startswith(f"{folder}: was taught by another model than {path}; put its teacher back, or ")


def test_a_teacher_of_other_classes_is_refused_before_a_folder_is_made(image_folder: Path, tmp_path: Path) -> None:
    path = save_tiny(tmp_path, classes=("blue", "cyan", "red"))
    with pytest.raises(DataError) as caught:
        run(image_folder, f"distill.teacher={path}")
    assert str(caught.value) == (
        f"distill.teacher {path} lacks 1 of the 3 classes of the data: green; rename or remove them there"
    )
    assert not (image_folder.parent / "runs").exists()


@pytest.fixture
def several(image_folder: Path) -> str:
    """Return the setting of a list in which images have one class or two."""
    lines = ["path,labels,split"]
    for path in sorted(image_folder.rglob("*.jpg")):
        split, name = path.relative_to(image_folder).parts[:2]
        labels = f"{name}|green" if path.stem.endswith("1") and name != "green" else name
        lines.append(f"{path.relative_to(image_folder)},{labels},{split}")
    (image_folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return f"data.list={image_folder / 'labels.csv'}"


def test_images_of_several_classes_are_taught_by_sigmoids(image_folder: Path, tmp_path: Path, several: str) -> None:
    (tmp_path / "teacher").mkdir()
    path = save_tiny(tmp_path / "teacher", thresholds=(0.5, 0.4, 0.3))
    given = [f"distill.teacher={path}", several, "augment.label_smoothing=0", "train.epochs=2", "distill.topk=2"]
    mixing = ["augment.mixup=0.8", "distill.temperature=2"]
    live = run(image_folder, *given, *mixing, "distill.cache=false", "output.name=live").folder
    kept = run(image_folder, *given, *mixing, "output.name=kept").folder
    assert_same_run(kept, live)
    assert rows(kept)[0]["val_agreement"] is not None
    for loss in ("hard", "dkd"):
        with pytest.raises(ConfigError) as caught:
            run(image_folder, *given, f"distill.loss={loss}", "output.name=refused")
        assert str(caught.value) == (
            f"distill.loss={loss} takes one class as the answer to an image, and the images have any number of classes "
            "each; set it to soft or feature"
        )
    with pytest.raises(
        ConfigError, match=r": gives an image any number of classes, and those of the data have one cla"
    ):
        run(image_folder, *given[:1], "output.name=refused")


def test_two_classes_leave_nothing_to_decouple(image_folder: Path, teacher: str) -> None:
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split / "red")
    with pytest.raises(ConfigError) as caught:
        run(image_folder, teacher, "distill.loss=dkd")
    assert str(caught.value) == (
        "distill.loss=dkd compares the classes that an image is not, and the data has 2 classes; set it to soft"
    )


def test_a_teacher_whose_answers_are_no_numbers_ends_the_run(image_folder: Path, tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    opened = open_model(path)
    weights = dict(opened.weights)
    weights["head.weight"] = torch.full_like(weights["head.weight"], 3e38)  # whose sums are infinite
    save_model(path, weights, opened.record)
    with pytest.raises(TrainingError) as caught:
        run(image_folder, f"distill.teacher={path}", "train.epochs=1", "schedule.warmup_epochs=0")
    assert str(caught.value) == (
        f"distill.teacher {path}: answers with NaN or Inf; give a teacher whose evaluation is finite, or "
        "train.precision=float32"
    )


def test_a_teacher_that_memory_is_too_short_for_is_named(
    image_folder: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(self: Teacher, images: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("out of memory, as a GPU says it")

    monkeypatch.setattr(Teacher, "compute", short)
    with pytest.raises(TrainingError) as caught:
        run(image_folder, teacher)
    assert str(caught.value) == (
        f"memory is too short for {teacher.replace('=', ' ')}, which computes 32 images at once; give a smaller "
        "teacher, or let a run of a smaller student fill distill.cache before ('out of memory, as a GPU says it')"
    )


def test_a_preview_has_the_views_that_come_again(image_folder: Path, teacher: str, tmp_path: Path) -> None:
    settings = settle(image_folder, teacher, "distill.views=1")
    preview(settings, tmp_path / "sheet.png", Notebook(), images=1, views=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = torch.from_numpy(np.array(sheet))
    side = (pixels.shape[1] - 4) // 4
    first, second = (pixels[:, 4 + number * side : number * side + side] for number in (2, 3))
    assert torch.equal(first, second)
