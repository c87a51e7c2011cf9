"""Token labels made by real processes, killed and shared out, and runs that learn from them."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitrail
import vitrail.training.step
from support.displays import Notebook as Shown
from support.forked import Python, python, wait_until
from support.runs import (
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
from vitrail.distillation.label_tokens import SHARD
from vitrail.distillation.token_maps import FIRST_LINE
from vitrail.errors import CheckpointError, ConfigError, DataError, Stopped, VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.training.start import begin
from vitrail.training.step import StepContext
from vitrail.training.train import train
from vitrail.weights.loading import open_model


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Return an untrained teacher for images of another size, in another order of classes, with one more."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    preprocess = Preprocess(size=(48, 64), mean=(0.5,) * 3, std=(0.5,) * 3)
    return save_tiny(folder, preprocess, classes=("red", "gray", "blue", "green"), image_size=(48, 64))


def label(teacher: Path, images: Path, out: Path, **options: Any) -> Any:
    given = {"data.root": str(images), "data.workers": 0, "data.check": False, **options.pop("settings", {})}
    return vitrail.make_token_labels(teacher, given, output=out, progress=False, **options)


@pytest.fixture
def maps(teacher: Path, image_folder: Path, tmp_path: Path) -> Path:
    """Return the token labels of the training images."""
    return label(teacher, image_folder, tmp_path / "maps", topk=3).folder


def shell(teacher: Path, images: Path, out: Path, *more: str) -> list[str]:
    given = [f"data.root={images}", "data.workers=0", "data.check=false"]
    return ["-m", "vitrail", "make-token-labels", "--teacher", str(teacher), "--output", str(out), *given, *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "lock"}


def enlarge(images: Path, copies: int) -> None:
    for path in sorted((images / "train").rglob("*.*")):
        for number in range(copies):
            shutil.copy(path, path.with_name(f"{path.stem}-{number}{path.suffix}"))


def test_token_labels_are_made_and_say_what_they_are(image_folder: Path, teacher: Path, tmp_path: Path) -> None:
    display = Shown()
    result = label(teacher, image_folder, tmp_path / "maps", topk=3, display=display)
    rows_there, columns = result.grid
    assert rows_there * 4 == columns * 3
    size = rows_there * columns * (4 * 2 + 3 * 2) + 9
    assert result.bytes_per_image == size
    assert (tmp_path / "maps" / "00000.maps").stat().st_size == len(FIRST_LINE) + 24 * size
    about = json.loads((tmp_path / "maps" / "about.json").read_text())
    assert about["teacher"]["preprocess"]["resize"] == "squash"
    assert about["data"]["classes"] == ["blue", "green", "red"]
    assert result.lines()[-1].endswith(
        f" train RECIPE data.root={image_folder} token_labels.folder={tmp_path / 'maps'}"
    )
    assert result.done_before == 0
    again = label(teacher, image_folder, tmp_path / "maps", topk=9, display=display)
    assert again.done_before == 24
    assert "3 classes each:" in display.notes[0]
    assert "3 classes each (all there are, where topk is 9):" in display.notes[-1]


def test_killed_and_started_again_it_writes_the_same_bytes(image_folder: Path, teacher: Path, tmp_path: Path) -> None:
    enlarge(image_folder, 11)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    label(teacher, image_folder, whole)
    process = Python(*shell(teacher, image_folder, killed))
    path = killed / "00000.maps"
    try:
        wait_until(lambda: path.exists() and path.stat().st_size > 4_000, process)
    finally:
        process.kill()
    if path.stat().st_size > 8_000:  # a write that was cut off in a record
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 5)
    done = python(*shell(teacher, image_folder, killed))
    assert done.returncode == 0, done.stderr
    assert "of them before" in done.stdout
    assert contents(killed) == contents(whole)
    assert len(contents(whole)) == 3


def test_two_processes_write_the_same_bytes_as_one(image_folder: Path, teacher: Path, tmp_path: Path) -> None:
    enlarge(image_folder, 11)
    label(teacher, image_folder, tmp_path / "one")
    done = python(*torchrun(2, *shell(teacher, image_folder, tmp_path / "two", "--device", "cpu")))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert (tmp_path / "two" / "00001.maps").exists()
    assert SHARD < 24 * 12


def test_damage_is_told_and_mended(image_folder: Path, teacher: Path, maps: Path) -> None:
    before, path = contents(maps), maps / "00000.maps"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00000\.maps: is damaged at image 24; the same .*make-token-labels as before"):
        run(image_folder, f"token_labels.folder={maps}", "train.epochs=1", "schedule.warmup_epochs=0")
    display = Shown()
    label(teacher, image_folder, maps, topk=3, display=display)
    assert f"{path}: is damaged; what follows its first 0 images is made anew" in display.warnings
    assert contents(maps) == before


def test_a_run_learns_from_token_labels_and_no_weight_file_has_the_classifier(image_folder: Path, maps: Path) -> None:
    display = Notebook()
    settings = (f"token_labels.folder={maps}", "train.epochs=2", "ema.decay=0.5")
    folder = run(image_folder, *settings, display=display).folder
    assert any(note.startswith(f"token labels {maps}: ") for note in display.notes)
    assert "head.token_head.weight" in last_state(folder)["model"]
    assert not [name for name in load_file(folder / "best.safetensors") if "token_head" in name]
    record = open_model(folder / "best.safetensors").record
    assert record.provenance["token_labels"]["model"] == "tnt_ti_patch16_224"
    plain = run(image_folder, "train.epochs=2", "ema.decay=0.5", "output.name=plain").folder
    assert rows(plain)[0]["train_loss"] != rows(folder)[0]["train_loss"]
    forked = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=forked", fork=folder)
    assert "head.token_head.weight" not in last_state(forked.folder)["model"]


EVERY = (
    "model.drop_path_rate=0.2", "ema.decay=0.9", "augment.erase_prob=0.3", "train.accumulate=2", "optim.clip_norm=1",
    "augment.auto_augment=rand-m9-mstd0.5-inc1", "train.grad_checkpointing=true", "optim.sam_rho=0.05",
    "augment.repeats=2", "token_labels.label=both", "token_labels.mix_token=0.7",
)  # fmt: skip


STUDENTS: dict[str, dict[str, Any]] = {
    "tnt": {},
    "t2t": {"name": "t2t_vit_7", "options": {"embed_dim": 32, "depth": 1, "num_heads": 2}},
    "twins": {
        "name": "twins_svt_small",
        "image_size": 64,
        "options": {"embed_dims": (8, 16, 16, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)},
    },
}


@pytest.mark.parametrize(
    "model",
    ["tnt", pytest.param("t2t", marks=pytest.mark.thorough), pytest.param("twins", marks=pytest.mark.thorough)],
)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(image_folder: Path, maps: Path, model: str) -> None:
    def train_student(name: str, resume: Path | None = None, display: Notebook | None = None) -> Path:
        config = settle(image_folder, *EVERY, f"token_labels.folder={maps}", "train.epochs=3", f"output.name={name}")
        config = replace(config, model=replace(config.model, **STUDENTS[model]))
        return train(config, name="tiny", resume=resume, display=display).folder

    whole = train_student("whole")
    with pytest.raises(Stopped):
        train_student("stopped", display=Signals(4))
    stopped = whole.with_name("stopped")
    train_student("stopped", resume=stopped)
    assert_same_run(stopped, whole)


def test_tokens_are_learned_of_views_that_the_device_makes(image_folder: Path, maps: Path) -> None:
    settings = (*EVERY, "augment.device=true", f"token_labels.folder={maps}", "train.epochs=2")
    whole = run(image_folder, *settings, "output.name=whole").folder
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=stopped", display=Signals(3))
    stopped = whole.with_name("stopped")
    run(image_folder, *settings, resume=stopped)
    assert_same_run(stopped, whole)
    plain = run(image_folder, *settings, "augment.device=false", "output.name=plain").folder
    assert rows(plain)[0]["train_loss"] != rows(whole)[0]["train_loss"]


@pytest.mark.thorough
def test_a_run_that_was_killed_goes_on_to_the_last_bit(image_folder: Path, maps: Path) -> None:
    settings = (f"token_labels.folder={maps}", "train.epochs=6", "output.save_every_updates=1", "data.workers=2")
    root = image_folder.parent / "runs"
    process = Python(*command(image_folder, *settings, "output.name=killed"))
    try:
        wait_until(has_saved(root / "killed", 5), process)
    finally:
        process.kill()
    run(image_folder, *settings, "output.name=killed", resume=root / "killed")
    run(image_folder, *settings, "data.workers=0", "output.name=whole")
    assert_same_run(root / "killed", root / "whole")


def test_two_processes_make_the_updates_of_one(image_folder: Path, maps: Path) -> None:
    settings = (
        f"token_labels.folder={maps}",
        "token_labels.mix_token=0",
        "train.epochs=2",
        "schedule.warmup_epochs=0",
        "optim.lr=1e-3",
    )
    alone = run(image_folder, *settings, "output.name=alone").folder
    done = python(*torchrun(2, *command(image_folder, *settings, "output.name=pair")))
    assert done.returncode == 0, done.stderr
    for first, second in zip(rows(alone), rows(alone.with_name("pair")), strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)


@pytest.mark.thorough
def test_short_memory_makes_the_same_updates(image_folder: Path, maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (f"token_labels.folder={maps}", "train.epochs=2")
    whole = rows(run(image_folder, *settings, "output.name=whole").folder)
    accumulate = vitrail.training.step._accumulate_gradients

    def short_while_whole(context: StepContext, *rest: Any) -> torch.Tensor:
        sums = accumulate(context, *rest)
        if context.memory.parts == 1:
            raise torch.OutOfMemoryError("out of memory, as a GPU says it")
        return sums

    monkeypatch.setattr("vitrail.training.step._accumulate_gradients", short_while_whole)
    parted = rows(run(image_folder, *settings, "output.name=parted").folder)
    for first, second in zip(whole, parted, strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
        assert first["train_top1"] == second["train_top1"]


def test_images_without_a_map_are_named_and_learn_their_class(
    image_folder: Path, teacher: Path, tmp_path: Path
) -> None:
    broken = sorted((image_folder / "train" / "red").iterdir())[0]
    kept, stat = broken.read_bytes(), broken.stat()
    broken.write_bytes(b"x" * len(kept))
    result = label(teacher, image_folder, tmp_path / "maps", topk=3)
    assert [Path(name).name for name, _ in result.bad_files] == [broken.name]
    with pytest.raises(DataError, match="cannot be read"):
        label(teacher, image_folder, tmp_path / "strict", settings={"data.bad_files": "error"})
    broken.write_bytes(kept)
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    about = tmp_path / "maps" / "about.json"
    known = json.loads(about.read_text())
    fresh = json.loads((label(teacher, image_folder, tmp_path / "again", topk=3).folder / "about.json").read_text())
    known["data"]["contents"] = fresh["data"]["contents"]  # as if its size and time were those of a good one
    about.write_text(json.dumps(known))
    display = Notebook()
    settings = (f"token_labels.folder={tmp_path / 'maps'}", "train.epochs=1", "schedule.warmup_epochs=0")
    run(image_folder, *settings, display=display)
    told = [line for line in display.warnings if "token labels" in line]
    assert told == [f"{broken}: has no token labels, and its tokens learn the class of the image"]


def test_a_micro_batch_without_images_has_targets_too(image_folder: Path, maps: Path) -> None:
    # unreadable where they are, but of the same size and time as when they were labelled
    for path in (image_folder / "train" / "red").iterdir():
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    folder = run(image_folder, f"token_labels.folder={maps}", "train.batch_size=2", "train.accumulate=2",
                 "train.epochs=1", "schedule.warmup_epochs=0").folder  # fmt: skip
    assert rows(folder)[0]["n_bad"] == 8


def told(action: Any) -> str:
    with pytest.raises(VitrailError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_labels_of_other_images_are_refused_with_the_difference(image_folder: Path, maps: Path, tmp_path: Path) -> None:
    settings = (f"token_labels.folder={maps}", "train.epochs=1", "schedule.warmup_epochs=0")
    message = told(lambda: run(image_folder, "token_labels.folder=gone"))
    assert message.startswith("gone: has no token labels; make them with ")
    shutil.copy(next((image_folder / "train" / "red").iterdir()), image_folder / "train" / "red" / "more.jpg")
    message = told(lambda: run(image_folder, *settings))
    assert message.startswith(f"{maps}: holds other token labels: data.rows is 24 there and 25 here, data.images is ")
    assert message.endswith("make-token-labels")
    (image_folder / "train" / "red" / "more.jpg").unlink()
    # images of the same names in other files, as those of a copy of the folder
    written = next((image_folder / "train" / "red").iterdir())
    times = written.stat()
    os.utime(written, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    message = told(lambda: run(image_folder, *settings))
    said = r"data\.contents is '\w+' there and '\w+' here \(a hash of sizes and times of files, or of pixels\); give"
    assert re.search(said, message)
    os.utime(written, ns=(times.st_atime_ns, times.st_mtime_ns))
    # the same images whose classes are numbered otherwise
    (image_folder / "train" / "red").rename(image_folder / "train" / "amber")
    (image_folder / "val" / "red").rename(image_folder / "val" / "amber")
    message = told(lambda: run(image_folder, *settings))
    assert "data.classes is ['blue', 'green', 'red'] there and ['amber', 'blue', 'green'] here" in message


def test_other_labels_in_the_place_of_a_run_are_refused_when_it_goes_on(
    image_folder: Path, teacher: Path, maps: Path, tmp_path: Path
) -> None:
    settings = (f"token_labels.folder={maps}", "train.epochs=2", "output.name=first")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(4))
    folder = image_folder.parent / "runs" / "first"
    moved = maps.rename(tmp_path / "moved")
    label(teacher, image_folder, maps, topk=2)
    message = told(lambda: run(image_folder, *settings, resume=folder))
    assert message.startswith(
        f"{folder}: was trained with other token labels than those of token_labels.folder={maps}; put those back, or "
    )
    run(image_folder, f"token_labels.folder={moved}", *settings[1:], resume=folder)


def test_a_folder_of_something_else_or_of_other_labels_is_not_written(
    image_folder: Path, teacher: Path, maps: Path, tmp_path: Path
) -> None:
    before = contents(maps)
    message = told(lambda: label(teacher, image_folder, maps, topk=2))
    assert message.startswith(f"{maps}: holds other token labels: topk is 3 there and 2 here; give another folder, or ")
    assert contents(maps) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert told(lambda: label(teacher, image_folder, tmp_path / "mine")) == (
        f"{tmp_path / 'mine'}: holds no token labels, and is not empty; give a folder of its own"
    )
    (maps / "about.json").write_text("{")
    assert told(lambda: run(image_folder, f"token_labels.folder={maps}")).startswith(
        f"{maps / 'about.json'}: is damaged, or of something else; make them with "
    )


def test_a_teacher_that_cannot_label_tokens_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = save_tiny(tmp_path / "other", classes=("blue", "green", "cat"))
    assert "red" in told(lambda: label(other, image_folder, tmp_path / "maps"))
    (tmp_path / "many").mkdir()
    many = save_tiny(tmp_path / "many", thresholds=(0.5,) * 3)
    assert "gives an image any number of classes" in told(lambda: label(many, image_folder, tmp_path / "maps"))
    exported = vitrail.export(other, format="torchscript", output=tmp_path / "other.torchscript", progress=False)
    assert exported
    message = told(lambda: label(tmp_path / "other.torchscript", image_folder, tmp_path / "maps"))
    assert "is an exported file, which gives logits of whole images alone; give the weight file" in message
    message = told(lambda: label(tmp_path / "gone.safetensors", image_folder, tmp_path / "maps"))
    assert "gone.safetensors" in message
    assert "teacher is missing" in told(lambda: vitrail.make_token_labels(settings={"data.root": str(image_folder)}))
    assert "topk is 0; it must be at least 1" in told(lambda: label(other, image_folder, tmp_path / "maps", topk=0))
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["token_labels.weight=-1"], "token_labels.weight is -1.0; it must be at least 0"),
        (["token_labels.mix_token=2"], "token_labels.mix_token is 2.0; it must be from 0 to 1"),
        (
            ["token_labels.folder=x", "augment.cutmix=1"],
            "augment.cutmix=1.0 pastes pixels, which token_labels.mix_token does with tokens and their labels; set "
            "augment.cutmix to its default",
        ),
        (
            ["token_labels.folder=x", "augment.mixup=0.8"],
            "augment.mixup=0.8 and token_labels.mix_token=1.0 both mix the images of a batch; set one of them to 0",
        ),
        (
            ["token_labels.folder=x", "distill.teacher=y"],
            "distill.teacher and token_labels.folder are two teachers; set one of them to null",
        ),
        (
            ["token_labels.folder=x", "train.compile=true"],
            "token_labels.folder does not go with train.compile=true; drop one",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(Path("images"), *settings)
    assert str(caught.value) == expected


def test_settings_without_effect_are_told() -> None:
    remarks = begin(None, ["data.name=digits", "token_labels.weight=1"]).remarks
    assert [text for _, text in remarks if "token" in text] == [
        "token_labels.weight=1.0: does nothing, since token_labels.folder is null"
    ]
    words = ["data.name=digits", "token_labels.folder=x", "augment.mix_off_epoch=2", "train.epochs=4"]
    assert not [text for _, text in begin(None, words).remarks if "mix_off" in text]


def test_a_student_without_known_tokens_is_refused(image_folder: Path, maps: Path) -> None:
    config = settle(image_folder, f"token_labels.folder={maps}")
    config = replace(config, model=replace(config.model, name="timm:resnet18", options={}))
    assert told(lambda: train(config)) == (
        "token_labels.folder: timm:resnet18 has no tokens that are known here; take a TNT, a T2T-ViT, a Twins or a "
        "PyramidTNT"
    )


def test_wide_images_are_labelled_whole(tmp_path: Path, teacher: Path) -> None:
    """The right end of a wide image, which a centre crop would leave out, has tokens of its own."""
    folder = tmp_path / "wide"
    for split in ("train", "val"):
        for name in ("red", "blue"):
            (folder / split / name).mkdir(parents=True)
            for number in range(2):
                image = Image.new("RGB", (96, 24), "black")
                if name == "red" and number:
                    image.paste((255, 255, 255), (84, 0, 96, 24))
                image.save(folder / split / name / f"{number}.png")
    result = label(teacher, folder, tmp_path / "maps", topk=2)
    from vitrail.distillation.token_maps import MapFiles, MapLayout

    files = MapFiles(tmp_path / "maps", MapLayout(2, 2, result.grid), 4)
    plain, marked = files.layout.unpack(files.read([2, 3]), torch.device("cpu")).softmax(1)
    assert (plain - marked).abs()[:, :, -1].max() > 1e-3


def test_the_command_says_what_to_type_next(image_folder: Path, teacher: Path, tmp_path: Path) -> None:
    done = python(*shell(teacher, image_folder, tmp_path / "maps"))
    assert done.returncode == 0, done.stderr
    assert "bytes an image, " in done.stderr
    assert f"next: vitrail train RECIPE data.root={image_folder} token_labels.folder={tmp_path / 'maps'}" in done.stdout
    with pytest.raises(CheckpointError):
        vitrail.make_token_labels(tmp_path / "nothing.safetensors", {"data.root": str(image_folder)}, progress=False)
