"""Training on a teacher's features without labels: learned, measured, resumed, shared out, taken on, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import vitrail
from support.forked import Python, python, wait_until
from support.runs import (
    Notebook,
    Signals,
    assert_same_run,
    assert_same_weights,
    command,
    has_saved,
    last_state,
    rows,
    run,
    settle,
    torchrun,
)
from support.tiny_model import save_tiny
from vitrail.display import Quiet
from vitrail.errors import ConfigError, DataError, Stopped, VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.models.registry import find_variant
from vitrail.training.start import begin
from vitrail.weights.loading import open_model

TINY = {
    "model": {
        "name": "tnt_ti_patch16_224",
        "image_size": 32,
        "options": {"embed_dim": 24, "inner_dim": 8, "depth": 1, "num_heads": 2, "inner_num_heads": 2},
    },
    "data": {"workers": 0, "check": False},
    "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
}
"""Settings of a pretraining of seconds."""


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Return the weight file of an untrained teacher for larger images, with other classes."""
    (tmp_path / "teacher").mkdir()
    preprocess = Preprocess(size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
    return save_tiny(tmp_path / "teacher", preprocess, classes=("cat", "dog"), image_size=48)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail" / "answers"


def of(teacher: Path, *settings: str) -> tuple[str, ...]:
    """Return the settings of a training without labels."""
    return (
        "data.unlabelled=true", "augment.label_smoothing=0", f"distill.teacher={teacher}", "distill.loss=tokens",
        "augment.mixup=0.3", "ema.decay=0.8", "model.drop_path_rate=0.1", "train.accumulate=2", *settings,
    )  # fmt: skip


@pytest.mark.thorough
def test_the_features_come_closer_and_the_file_is_taken_on(
    image_folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    display = Notebook()
    given = {**TINY, "train": {**TINY["train"], "epochs": 6}}
    result = vitrail.pretrain(image_folder, given, teacher=teacher, labels=image_folder, display=display)
    first, *_, last = result.rows
    assert last["val_loss"] < 0.9 * first["val_loss"]
    assert result.monitor == "val_loss"
    assert "top" not in str(result).replace("k-NN top-1", "")

    # the file
    record = open_model(result.weights).record
    assert record.classes == ()
    assert not [name for name in load_file(result.weights) if name.startswith("head") or "teacher" in name]
    assert record.provenance["teacher"]["file"] == str(teacher)

    # k-NN is that of embed, to the last bit
    knn = record.provenance["knn"]
    for path, key in ((result.weights, "after"), (teacher, "teacher")):
        embedded = vitrail.embed(path, settings={"data.root": image_folder}, knn=True, display=Quiet())
        assert embedded.knn is not None
        assert (embedded.knn.value, embedded.knn.images, embedded.knn.how) == (knn[key], knn["n"], knn["how"])
    assert (first["knn_top1"], first["teacher_knn_top1"]) == (knn["before"], knn["teacher"])
    kept = rows(result.folder)
    assert [row["knn_top1"] for row in kept if "knn_top1" in row] == [knn["before"], knn["after"]]
    page = (result.folder / "report" / "report.html").read_text()
    assert "k-NN of the teacher" in page
    assert json.loads((result.folder / "report" / "report.json").read_text())["knn"] == knn
    shown = (
        f"k-NN top-1 {knn['before']:.1f} % before, {knn['after']:.1f} % after, {knn['teacher']:.1f} % of the teacher"
    )
    assert shown in result.lines()

    # what it is taken on by
    plan = vitrail.finetune(
        image_folder, {"data": TINY["data"], "train.batch_size": 8}, weights=result.weights, dry_run=True,
        display=Quiet(),
    )  # fmt: skip
    assert plan.floor is not None
    assert plan.floor.own is None
    taken = run(image_folder, f"model.weights={result.weights}", "train.epochs=1", "schedule.warmup_epochs=0")
    assert "val_top1" in taken.best
    again = run(image_folder, *of(teacher, f"model.weights={result.weights}", "train.epochs=1", "output.name=again"))
    assert rows(again.folder)[0]["train_loss"] < kept[1]["train_loss"]
    with pytest.raises(VitrailError, match=r"no classes|names no|without a head|has no head"):
        vitrail.evaluate(result.weights, {"data.root": str(image_folder)}, display=Quiet())

    # a finished run has its numbers once more
    more = vitrail.train(resume=result.folder, display=Quiet())
    assert more.best == result.best
    assert rows(result.folder) == kept


def test_a_run_that_was_stopped_goes_on_to_the_last_bit(image_folder: Path, teacher: Path) -> None:
    settings = of(teacher, "train.epochs=3", f"distill.labels={image_folder}")
    whole = run(image_folder, *settings, "output.name=whole").folder
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=stopped", display=Signals(9))
    stopped = whole.with_name("stopped")
    run(image_folder, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)
    assert open_model(stopped / "best.safetensors").record.provenance["knn"]["after"] is not None


@pytest.mark.thorough
def test_a_run_that_was_killed_goes_on_to_the_last_bit(image_folder: Path, teacher: Path) -> None:
    settings = of(teacher, "train.epochs=6", "output.save_every_updates=1", "distill.views=2")
    root = image_folder.parent / "runs"
    process = Python(*command(image_folder, *settings, "output.name=killed"))
    try:
        wait_until(has_saved(root / "killed", 5), process)
    finally:
        process.kill()
    assert last_state(root / "killed")["epoch"] < 6
    run(image_folder, *settings, "output.name=killed", resume=root / "killed")
    run(image_folder, *settings, "distill.cache=false", "output.name=whole")
    assert_same_run(root / "killed", root / "whole")


def test_a_run_from_the_cache_equals_one_without_to_the_last_bit(
    image_folder: Path, teacher: Path, cache: Path
) -> None:
    settings = of(teacher, "train.epochs=3", "distill.views=2")
    live = run(image_folder, *settings, "distill.cache=false", "output.name=live").folder
    assert not cache.exists()
    first = run(image_folder, *settings, "output.name=first").folder
    (folder,) = cache.iterdir()
    stored = {path: path.read_bytes() for path in folder.iterdir()}
    second = run(image_folder, *settings, "output.name=second").folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == stored  # nothing was computed
    assert_same_run(first, live)
    assert_same_run(second, live)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["twins_svt_small", "t2t_vit_7"])
def test_other_families_learn_too(
    image_folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(image_folder.parent)
    options = {key: value for key, value in find_variant(name)[0].tiny.items() if key != "num_classes"}
    model = {"name": name, "image_size": options.pop("image_size"), "options": options}
    live, kept = (
        vitrail.pretrain(
            image_folder, {**TINY, "model": model, "distill": {"cache": cache}}, teacher=teacher, display=Quiet()
        )
        for cache in (False, "kept")
    )
    assert list(Path("kept").glob("*.answers"))
    assert_same_run(live.folder, kept.folder)
    assert live.rows[-1]["val_loss"] < 1.5


def test_maps_are_kept_where_they_come_again_or_a_folder_is_named(
    image_folder: Path, teacher: Path, cache: Path
) -> None:
    display = Notebook()
    run(image_folder, *of(teacher, "train.epochs=1", "schedule.warmup_epochs=0"), display=display)
    assert not cache.exists()
    bytes_a_view = 8 + 2 * (1 + 48 + 48 * 4)
    assert (
        f"the teacher's maps are not kept, and computed in every epoch; they take {bytes_a_view} bytes a view, "
        f"{bytes_a_view * 29 / 1e9:.3g} GB for all images once: distill.views=K keeps K views of an image, "
        "distill.cache=FOLDER all 1"
    ) in display.notes
    kept = image_folder.parent / "kept"
    settings = of(teacher, "train.epochs=1", "schedule.warmup_epochs=0", f"distill.cache={kept}", "output.name=kept")
    run(image_folder, *settings, display=display)
    assert list(kept.glob("*.answers"))
    assert any(f"GB are free in {kept}" in note for note in display.notes)
    with pytest.raises(ConfigError) as caught:
        run(image_folder, *settings, "distill.loss=feature", "output.name=other")
    assert f"distill.cache {kept}: holds other answers: teacher.features is 240 there and 48 here" in str(caught.value)


@pytest.mark.thorough
def test_two_processes_make_the_updates_of_one(image_folder: Path, teacher: Path) -> None:
    settings = of(teacher, "train.epochs=2", "model.drop_path_rate=0", "augment.mixup=0", "distill.views=1",
                  f"distill.labels={image_folder}")  # fmt: skip
    alone = run(image_folder, *settings, "output.name=alone").folder
    done = python(*torchrun(2, *command(image_folder, *settings, "output.name=pair")))
    assert done.returncode == 0, done.stderr
    for first, second in zip(rows(alone), rows(alone.with_name("pair")), strict=True):
        assert first["val_loss"] == pytest.approx(second["val_loss"], rel=1e-4)
        if first["train_loss"] is not None:
            assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
        assert first.get("teacher_knn_top1") == second.get("teacher_knn_top1")


def test_tokens_are_learned_beside_labels(image_folder: Path, tmp_path: Path) -> None:
    path = save_tiny(tmp_path)
    settings = (f"distill.teacher={path}", "distill.loss=tokens", "distill.weight=0.7", "train.epochs=2")
    folder = run(image_folder, *settings, "output.name=live").folder
    assert {"train_top1", "val_top1", "val_agreement"} <= rows(folder)[0].keys()
    assert not [name for name in load_file(folder / "best.safetensors") if "teacher" in name]
    kept = run(image_folder, *settings, f"distill.cache={tmp_path / 'kept'}", "output.name=kept").folder
    assert_same_run(kept, folder)


@pytest.fixture
def timm_teacher(image_folder: Path) -> Path:
    """Return the weight file of a tiny ViT of timm that was trained for an epoch."""
    recipe = image_folder.parent / "vit.yaml"
    recipe.write_text(
        "model: {name: 'timm:vit_tiny_patch16_224', image_size: 48, options: {depth: 1, embed_dim: 24, num_heads: 2}}\n"
        f"data: {{root: {image_folder}, workers: 0, check: false}}\n"
        "schedule: {warmup_epochs: 0}\n"
        "train: {epochs: 1, batch_size: 8, device: cpu}\n"
        f"output: {{root: {image_folder.parent / 'runs'}, name: vit}}\n"
    )
    return vitrail.train(recipe, display=Quiet()).weights


@pytest.mark.thorough
def test_a_model_of_timm_teaches(image_folder: Path, timm_teacher: Path) -> None:
    short = ("train.epochs=1", "schedule.warmup_epochs=0")
    for loss in ("soft", "feature", "tokens"):
        given = (f"distill.teacher={timm_teacher}", f"distill.loss={loss}", f"output.name={loss}")
        assert run(image_folder, *short, *given).rows[-1]["val_agreement"] is not None
    bare = run(image_folder, *of(timm_teacher), *short, "output.name=bare")
    assert 0 < bare.rows[-1]["val_loss"] < 2


def test_a_list_and_a_named_set_need_no_labels(image_folder: Path, teacher: Path) -> None:
    names = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.jpg"))
    (image_folder / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    short = of(teacher, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=list")
    done = run(image_folder, *short, f"data.list={image_folder / 'list.csv'}")
    assert rows(done.folder)[0]["updates"] == 3
    config = settle(image_folder, *short, "data.root=null", "data.name=digits")
    assert config.data.unlabelled


def test_class_folders_are_pointed_out(image_folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_folder.parent)
    display = Notebook()
    short = {**TINY, "train": {**TINY["train"], "epochs": 1}}
    result = vitrail.pretrain(image_folder, short, teacher=teacher, display=display)
    assert result.folder == Path("runs") / "pretrain-images"
    assert (
        f"{image_folder / 'train'} has 3 folders; if these are classes, labels={image_folder} measures by k-NN how "
        "well the features tell them apart"
    ) in display.notes


def refusal(*words: Any, **options: Any) -> str:
    """Return why a pretraining is refused."""
    with pytest.raises(VitrailError) as caught:
        vitrail.pretrain(*words, display=Quiet(), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_that_cannot_be_learned_from_are_refused(
    image_folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    (image_folder.parent / "empty" / "inner").mkdir(parents=True)
    assert refusal("empty", TINY, teacher=teacher) == (
        "data.root empty: holds no image, there or in its 1 folders (inner); give the folder of your images"
    )
    shutil.rmtree("empty/inner")
    expected = "data.root empty: holds no image; give the folder of your images"
    assert refusal("empty", TINY, teacher=teacher) == expected
    shutil.copy(next((image_folder / "train" / "red").iterdir()), "empty")
    assert refusal("empty", TINY, teacher=teacher).startswith("empty: 1 images are too few to hold some out")
    assert refusal("gone", TINY, teacher=teacher) == "gone: is not there; give a folder of images, or a list"
    image = str(next(Path("empty").iterdir()))
    assert refusal(image, TINY, teacher=teacher).startswith(
        f"{image}: is one image, and pretrain needs many; give their folder: "
    )
    assert "needs images; give their folder" in refusal(None, TINY, teacher=teacher)
    assert refusal(image_folder, TINY).startswith("pretrain needs a teacher, whose features are learned; give teacher=")
    few = {**TINY, "train": {"batch_size": 64, "device": "cpu"}}
    assert "29" in refusal(image_folder, few, teacher=teacher)
    shutil.copytree(image_folder / "train" / "red", image_folder.parent / "one" / "red")
    assert refusal(image_folder, TINY, teacher=teacher, labels="one") == (
        "distill.labels one: all 8 images have the same class, so nothing can be told apart; give images of two classes"
    )
    assert refusal(image_folder, TINY, teacher=teacher, labels="gone").startswith("distill.labels gone: ")


def test_teachers_that_give_no_such_features_are_refused(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    exported = tmp_path / "teacher.onnx"
    exported.write_bytes(b"")
    gray = save_tiny(tmp_path, Preprocess(size=(32, 32), channels=1, mean=(0.5,), std=(0.5,)))
    assert refusal(image_folder, TINY, teacher=gray) == (
        f"distill.teacher {gray}: reads images of 1 channel and 8 bits, and the student of 3 and 8; give a teacher of "
        "such images"
    )
    assert "teacher.onnx" in refusal(image_folder, TINY, teacher=exported)
    assert not (image_folder.parent / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            ["data.unlabelled=true"],
            "data.unlabelled is true, so there is nothing to learn but a teacher's features; give distill.teacher=FILE "
            "or a name of published weights",
        ),
        (
            ["data.unlabelled=true", "distill.teacher=x"],
            "data.unlabelled is true, and distill.loss=soft learns what a teacher says of classes; set it to tokens or "
            "feature",
        ),
        (
            ["distill.teacher=x", "distill.labels=y"],
            "distill.labels=y is for images without labels; leave it out, or set data.unlabelled=true",
        ),
        (
            ["distill.teacher=x", "distill.loss=tokens", "augment.cutmix=1"],
            "distill.loss is tokens, which matches places, and CutMix moves them; set distill.mixed=true, or "
            "augment.cutmix=0 and augment.cutmix_minmax=null",
        ),
        (
            ["data.unlabelled=true", "data.root=null", "data.name=hf:a/b", "distill.teacher=x", "distill.loss=tokens"],
            "data.unlabelled does not go with name=hf:a/b; it is for folders, lists, shards and the other named sets",
        ),
        (
            ["data.unlabelled=true", "distill.teacher=x", "distill.loss=tokens", "output.keep_best=2",
             "output.average_best=true"],
            "output.average_best is true, and data.unlabelled leaves nothing to measure an average by; set it to "
            "false, and ema.decay averages all updates",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settle(Path("images"), *settings)
    assert str(caught.value) == expected


def test_settings_that_need_labels_are_refused_or_told(image_folder: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(image_folder, *of(teacher, "augment.label_smoothing=0.1", "balance.sampler=sqrt", "train.monitor=val_top1"))
    assert str(caught.value) == (
        "the images have no labels, as data.unlabelled says; balance.sampler=sqrt: makes up for classes, of which "
        "there are none; augment.label_smoothing=0.1: smooths labels; set it to 0; train.monitor=val_top1: set it to "
        "val_loss or train_loss"
    )
    with pytest.raises(ConfigError) as caught:
        run(image_folder, *of(teacher, "train.compile=true"))
    assert str(caught.value) == "distill.loss=tokens does not go with train.compile=true; leave out train.compile"
    words = ["data.root=x", "data.unlabelled=true", "distill.teacher=x", "distill.loss=tokens"]
    given = ["distill.weight=0.3", "data.class_order=natural", "data.val_split=null"]
    start = begin(None, ["data.name=null", *words, *given])
    assert [text for _, text in start.remarks] == [
        "distill.weight=0.3: does nothing, since data.unlabelled is true, and the teacher's features are all that is "
        "learned",
        "data.class_order=natural: does nothing, since data.unlabelled is true, and no label is read",
        "data.val_split=null: does nothing, since data.unlabelled is true, and a folder's images are taken at any "
        "depth",
    ]


def test_a_pretraining_reads_no_labels(image_folder: Path, teacher: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data.unlabelled=false: a pretraining reads no labels; leave it out, or "):
        vitrail.pretrain(image_folder, {"data.unlabelled": False}, teacher=teacher)


def test_another_teacher_or_other_images_do_not_go_on(image_folder: Path, tmp_path: Path, teacher: Path) -> None:
    settings = of(teacher, "train.epochs=3")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(8))
    folder = image_folder.parent / "runs" / "tiny"
    shutil.copy(next((image_folder / "train" / "red").iterdir()), image_folder / "more.jpg")
    with pytest.raises(DataError, match="was trained on other images"):
        run(image_folder, *settings, resume=folder)


def test_the_same_weights_come_of_the_verb_and_of_its_recipe(
    image_folder: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(image_folder.parent)
    short = {**TINY, "train": {**TINY["train"], "epochs": 1}}
    result = vitrail.pretrain(image_folder, short, teacher=teacher, display=Quiet())
    again = vitrail.train(result.folder / "config.yaml", {"output.name": "again"}, display=Quiet())
    assert_same_weights(result.weights, again.weights)
