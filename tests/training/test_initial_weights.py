"""Training that begins with the weights of another project, or of another model."""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from support.runs import (
    TINY,
    Notebook,
    Signals,
    assert_same_run,
    run,
)
from vitrail.config.resolve import parse_command_line, read_yaml
from vitrail.display import Quiet
from vitrail.errors import ConfigError, DataError, Stopped
from vitrail.evaluation.evaluate import evaluate
from vitrail.models.dialects import write_names
from vitrail.models.registry import create_model, find_variant
from vitrail.training.start import begin
from vitrail.training.train import train
from vitrail.weights.convert import convert
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt, read_ckpt
from vitrail.weights.loading import load_model


def mindcv_file(folder: Path) -> Path:
    """Return a MindSpore checkpoint of the tiny model for seven classes at 48 pixels, as MindCV names its weights."""
    options = read_yaml(TINY).values["model"]["options"]
    torch.manual_seed(1)
    model = create_model("tnt_ti_patch16_224", num_classes=7, image_size=48, **options)
    dialect = next(d for d in find_variant("tnt_ti_patch16_224")[0].dialects if d.name == "mindcv")
    links, _ = write_names(model.state_dict(), dialect)
    path = folder / "theirs.ckpt"
    path.write_bytes(b"".join(encode_ckpt({link.theirs[0]: model.state_dict()[link.ours[0]] for link in links})))
    return path


def test_a_net_of_the_zoo_is_trained_and_goes_back_to_it(image_folder: Path, tmp_path: Path) -> None:
    settings = ("model.options.biases=zoo", "model.options.gelu=tanh", "model.options.norm_eps=1.0e-7")
    short = ("train.epochs=1", "schedule.warmup_epochs=0", "ema.decay=null")
    first = run(image_folder, *settings, *short).folder / "best.safetensors"
    assert convert(first, tmp_path / "theirs.ckpt", "zoo").difference == 0
    display = Notebook()
    again = run(image_folder, f"model.weights={tmp_path / 'theirs.ckpt'}", settings[0], *short, display=display).folder
    assert any("zoo tnt_ti_patch16_224" in note for note in display.notes)
    assert load_model(again / "best.safetensors").config == load_model(first).config
    assert convert(again / "best.safetensors", tmp_path / "again.ckpt", "zoo").difference == 0


STILL = ("train.epochs=1", "schedule.warmup_epochs=0", "optim.lr=1e-20", "schedule.min_lr=0")


def test_a_run_begins_with_the_weights_of_another_project(image_folder: Path, tmp_path: Path) -> None:
    path, display = mindcv_file(tmp_path), Notebook()
    result = run(image_folder, f"model.weights={path}", *STILL, display=display)
    assert any(
        "mindcv tnt_ti_patch16_224" in note and "2 new" in note and "1 resized" in note for note in display.notes
    )
    assert any("MindCV normalises with ImageNet's mean and std" in warning for warning in display.warnings)
    loaded, theirs = load_model(result.folder / "best.safetensors"), read_ckpt(path)
    assert loaded.config.gelu == "tanh"
    assert loaded.config.final_norm_eps == 1e-7
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
    assert torch.equal(loaded.state_dict()["blocks.0.outer_norm1.weight"], theirs["blocks.0.outer_norm1.gamma"])
    assert loaded.state_dict()["outer_pos"].shape == (1, 5, 24)
    written = read_yaml(result.folder / "config.yaml").values
    assert (written["model"]["options"]["gelu"], written["model"]["weights"]) == ("tanh", str(path))
    assert written["preprocess"]["mean"] == [0.485, 0.456, 0.406]


def numbered(folder: Path, classes: int) -> tuple[Path, Path]:
    """Return folders class1, class2, class10, ... of images, and weights without names of as many classes."""
    root = folder / "numbered"
    for number in (1, 2, *range(10, 8 + classes)):
        (root / f"class{number}").mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (number * 20, i * 9, 99)).save(root / f"class{number}" / f"{i}.png")
    options = read_yaml(TINY).values["model"]["options"]
    torch.manual_seed(1)
    model = create_model("tnt_ti_patch16_224", num_classes=classes, image_size=32, **options)
    torch.save(model.state_dict(), folder / "nameless.pth")
    return root, folder / "nameless.pth"


def test_a_head_without_names_is_kept_in_training_where_the_counts_are_equal(tmp_path: Path) -> None:
    root, path = numbered(tmp_path, 3)
    head = torch.load(path)["head.weight"]
    display = Notebook()
    result = run(root, f"model.weights={path}", *STILL, "train.batch_size=6", display=display)
    loaded = load_model(result.folder / "best.safetensors")
    assert loaded.classes == ("class1", "class10", "class2")
    assert torch.allclose(loaded.state_dict()["head.weight"], head, atol=1e-5)
    assert any(
        "names no classes; its head is kept, and the order of its 3 outputs is taken" in w for w in display.warnings
    )
    assert any("index 1 is class10 in the order of text" in text for text in display.warnings)

    display = Notebook()
    settings = [f"model.weights={path}", *STILL, "train.batch_size=6", "data.class_order=natural"]
    result = run(root, *settings, display=display)
    assert load_model(result.folder / "best.safetensors").classes == ("class1", "class2", "class10")
    assert not any("in the order of text" in text for text in display.warnings)
    assert read_yaml(result.folder / "config.yaml").values["data"]["class_order"] == "natural"
    again = evaluate(
        result.folder / "best.safetensors", [parse_command_line(["data.workers=0", "evaluate.device=cpu"])]
    )
    assert again.accuracy.top1 == result.rows[-1]["val_top1"]

    names = tmp_path / "names.txt"
    names.write_text("class10\nclass1\nclass2\n")
    display = Notebook()
    result = run(
        root, f"model.weights={path}", f"weights.classes={names}", *STILL, "train.batch_size=6", display=display
    )
    assert torch.allclose(
        load_model(result.folder / "best.safetensors").state_dict()["head.weight"], head[[1, 0, 2]], atol=1e-5
    )
    assert not any("head" in text for text in display.warnings)


def test_a_dropped_head_is_a_warning_and_order_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    root, path = numbered(tmp_path, 4)
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    settings = [f"model.weights={path}", f"weights.classes={names}", *STILL, "train.batch_size=6"]
    display = Notebook()
    run(root, *settings, display=display)
    assert any(
        "its head is dropped, and that of 4 classes is fresh: none of its 4" in text for text in display.warnings
    )
    display = Notebook()
    result = run(root, *settings, "data.match_classes=by-order", "data.class_order=natural", display=display)
    weights = load_model(result.folder / "best.safetensors").state_dict()["head.weight"]
    assert torch.allclose(weights, torch.load(path)["head.weight"], atol=1e-5)
    assert any(
        "matched with those of the data by their order: 0 is ant there and class1" in w for w in display.warnings
    )
    shutil.rmtree(root / "class10")
    with pytest.raises(DataError, match=r"by-order: .* has 4 classes and the data 3; give as many"):
        run(root, *settings, "data.match_classes=by-order")


def test_a_binary_classifier_of_one_logit_is_trained_on_as_one_of_two(image_folder: Path, tmp_path: Path) -> None:
    _, path = numbered(tmp_path, 1)
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split / "red")
    result = run(image_folder, f"model.weights={path}", *STILL)
    weights = load_model(result.folder / "best.safetensors").state_dict()["head.weight"]
    assert torch.allclose(weights[1], torch.load(path)["head.weight"][0], atol=1e-5)
    assert torch.allclose(weights[0], torch.zeros(()), atol=1e-5)


def test_what_is_set_counts_more_than_what_the_weight_file_says(image_folder: Path, tmp_path: Path) -> None:
    settings = ("model.options.gelu=erf", "preprocess.mean=[0.5,0.5,0.5]", *STILL)
    display = Notebook()
    folder = run(image_folder, f"model.weights={mindcv_file(tmp_path)}", *settings, display=display).folder
    assert any("expects gelu=tanh; the settings say erf, which is taken" in text for text in display.warnings)
    assert any("expects preprocess.mean=(0.485, 0.456, 0.406); the settings" in text for text in display.warnings)
    assert any("decides model.options.final_norm_eps=1e-07, preprocess.std=" in text for text in display.notes)
    loaded = load_model(folder / "best.safetensors")
    assert loaded.config.gelu == "erf"
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_run_goes_on_and_is_forked_without_the_file_it_began_with(image_folder: Path, tmp_path: Path) -> None:
    path = mindcv_file(tmp_path)
    words = [f"data.root={image_folder}", f"output.root={tmp_path / 'runs'}", f"model.weights={path}"]
    start = begin(str(TINY), words)
    with pytest.raises(Stopped):
        train(start.config, name="tiny", display=Signals(2))
    whole = train(start.config, name="whole", display=Quiet())
    path.unlink()
    folder = tmp_path / "runs" / "tiny"
    for recipe in (None, str(TINY)):  # a recipe lacks what the weight file decided, and that is no difference
        again = begin(recipe, [words[0], words[2]] if recipe else [], resume=folder)
        assert again.config.model.options["gelu"] == "tanh"
    resumed = train(again.config, name=again.name, resume=again.resume, display=Quiet())
    assert_same_run(whole.folder, resumed.folder)
    fork = begin(None, ["train.epochs=1"], fork=folder)
    assert fork.config.model.weights is None
    assert fork.config.model.options["gelu"] == "tanh"
    with pytest.raises(ConfigError, match=r"begins with that run's weights; drop model\.weights="):
        begin(None, [f"model.weights={path}"], fork=folder)


def test_what_a_transfer_chooses_on_purpose_is_a_note(image_folder: Path, tmp_path: Path) -> None:
    """Another part of the image, and a head for other classes, are what was asked for."""
    path = mindcv_file(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {number}\n" for number in range(7)))
    chosen = ("preprocess.crop=1.0", "preprocess.resize=letterbox", f"weights.classes={names}")
    display = Notebook()
    run(image_folder, f"model.weights={path}", *chosen, *STILL, display=display)
    for said in (
        f"{path}: expects preprocess.crop=0.9; the settings say 1.0, which is taken",
        f"{path}: expects preprocess.resize=crop; the settings say letterbox, which is taken",
        f"{path}: its head is dropped, and that of 3 classes is fresh: none of its 7 classes is among the 3 wanted",
    ):
        assert said in display.notes
        assert said not in display.warnings
