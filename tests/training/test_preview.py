"""What a preview shows: the views of training and evaluation, as the model gets them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from support.displays import Notebook, Quiet
from support.runs import TINY
from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.data.loader import TrainImages
from vitrail.data.sources import count_by_class
from vitrail.distributed.processes import processes
from vitrail.errors import ConfigError, DataError
from vitrail.training.initial_model import build_preprocess
from vitrail.training.losses import choose_loss
from vitrail.training.preview import Row, draw_rows
from vitrail.training.setup import build_view, open_initial_model, open_training_data
from vitrail.training.step import StepContext

PLAIN = ("augment.mixup=0", "augment.cutmix=0", "augment.erase_prob=0")


def draw(folder: Path, *tokens: str, images: int = 4, views: int = 3) -> tuple[TrainConfig, list[Row]]:
    config = resolve(TrainConfig, [read_yaml(TINY), parse_command_line([f"data.root={folder}", *tokens])]).config
    with processes("float32", "cpu") as accelerator:
        config, data = open_training_data(config, accelerator, Quiet())
        config, model = open_initial_model(config, data, accelerator, Quiet())
        preprocess = build_preprocess(config, config.model.name, model)
        loss = choose_loss(data.train.label_sets)
        context = StepContext(
            config=config,
            accelerator=accelerator,
            preprocess=preprocess,
            objective=loss.build(config, data.train, count_by_class(data.train), accelerator.device),
        )
        return config, draw_rows(context, data.train, images, views)


def widen(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        image = Image.open(path)
        image.resize((3 * image.width, image.height)).save(path)


def test_the_views_are_those_that_training_draws(image_folder: Path) -> None:
    config, rows = draw(image_folder, *PLAIN)
    with processes("float32", "cpu") as accelerator:
        config, data = open_training_data(config, accelerator, Quiet())
        config, model = open_initial_model(config, data, accelerator, Quiet())
        preprocess = build_preprocess(config, config.model.name, model)
    names = [data.train.name(index) for index in range(len(data.train))]
    view = build_view(config, preprocess)
    images = TrainImages(data.train, view, preprocess.pixels, config.train.seed)
    for row in rows:
        index = names.index(row.name)
        assert torch.equal(row.evaluation, preprocess.view(row.original))
        for epoch, (pixels, target) in enumerate(row.views):
            drawn = images[epoch, index, 0].image
            assert drawn is not None
            assert torch.equal(pixels, drawn)
            assert target.startswith(f"{row.label} 9")  # of which label smoothing takes a little


def test_mixed_images_show_what_the_model_is_to_answer(image_folder: Path) -> None:
    mixed = ("augment.mixup=1", "augment.mix_prob=1", "augment.label_smoothing=0")
    _, rows = draw(image_folder, *mixed, images=12)
    targets = [target for row in rows for _, target in row.views]
    assert any("%, " in target for target in targets)
    _, unmixed = draw(image_folder, *mixed, "augment.mix_off_epoch=1", images=12)
    assert all(target == f"{row.label} 100%" for row in unmixed for _, target in row.views[1:])
    assert [row.views[0][1] for row in unmixed] == [row.views[0][1] for row in rows]


def test_images_of_several_classes_show_all_of_them(image_folder: Path, tmp_path: Path) -> None:
    lines = ["path,split,labels"]
    for split in ("train", "val"):
        for path in sorted((image_folder / split).rglob("*.jpg")):
            lines.append(f"{path.relative_to(image_folder)},{split},{path.parent.name}|bright")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines) + "\n")
    tokens = (f"data.list={table}", "augment.label_smoothing=0", *PLAIN)
    _, rows = draw(image_folder, *tokens)
    for row in rows:
        assert "bright" in row.label
        for _, target in row.views:
            assert sorted(target.split(", ")) == sorted(f"{name} 100%" for name in row.label.split(" | "))


def test_the_seed_decides_which_images_and_views_there_are(image_folder: Path, tmp_path: Path) -> None:
    pages = []
    for number, seed in enumerate((0, 0, 1)):
        page = tmp_path / f"{number}.html"
        settings = {"data.root": image_folder, "train.seed": seed}
        shown = vitrail.preview(TINY, settings, output=page, images=3, views=2, progress=False)
        assert (shown.page, shown.images) == (page, 3)
        pages.append(page.read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_a_word_is_said_where_the_median_image_loses_much(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["preview", str(TINY), f"data.root={image_folder}", "--images", "2", "--views", "1"]

    def said(*more: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*words, *more])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    advice = "of their area to evaluation's centre crop; preprocess.resize=letterbox or squash keeps all of them"
    out = said()
    assert "2 images; the median image loses 35% of its area in evaluation" in out
    assert "preview: preview.html" in out
    assert advice not in out
    widen(image_folder)
    out = said()
    assert f"half of the images lose over 78% {advice}" in out
    page = Path("preview.html").read_text()
    assert "resize crop, crop 0.9" in page
    assert page.count("<figure") == 2 * 3
    assert advice not in said("preprocess.resize=letterbox")
    assert "resize letterbox" in Path("preview.html").read_text()


def test_weights_show_how_they_were_trained_and_are_evaluated(image_folder: Path, tmp_path: Path) -> None:
    run = {"output.root": tmp_path, "train.epochs": 1, "preprocess.resize": "squash", "augment.erase_prob": 1}
    trained = vitrail.train(TINY, {"data.root": image_folder, **run}, progress=False)
    page = tmp_path / "page.html"
    shown = vitrail.preview(trained.weights, output=page, images=2, views=1, progress=False)
    assert (shown.images, shown.lost) == (2, 0)
    assert "resize squash" in page.read_text()
    framed = {"preprocess.resize": "letterbox"}
    display = Notebook()
    vitrail.preview(trained.weights, framed, output=page, images=2, views=1, display=display)
    assert "resize letterbox" in page.read_text()
    assert any("expects preprocess.resize=squash" in note for note in display.notes)


def test_a_sheet_has_a_line_of_pictures_for_each_image(image_folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    shown = vitrail.preview(TINY, {"data.root": image_folder}, output=sheet, images=3, views=2, progress=False)
    # pictures of 32 pixels, with 4 between them
    with Image.open(sheet) as picture:
        assert picture.size == (4 * 36 + 4, 3 * 36 + 4)
    assert shown._repr_html_().startswith('<img src="data:image/png')


def test_images_of_many_channels_and_16_bits_are_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            folder = tmp_path / "deep" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(0, 4096, (40, 60, 5)).astype(np.uint16)
                np.save(folder / f"{number}.npy", pixels)
    settings = {"data.root": tmp_path / "deep", "data.channels": 5, "data.bits": 16}
    for name in ("page.html", "sheet.png"):
        shown = vitrail.preview(TINY, settings, output=tmp_path / name, images=2, views=2, progress=False)
        assert shown.images == 2
    assert "the first three of 5 channels" in (tmp_path / "page.html").read_text()
    page = vitrail.preview(TINY, settings, output=tmp_path / "page.html", images=1, views=1, progress=False)
    assert page._repr_html_().startswith("<iframe srcdoc=")


def test_what_cannot_be_read_is_left_out_or_said(image_folder: Path, tmp_path: Path) -> None:
    names = sorted((image_folder / "train").rglob("*.jpg"))
    for path in names[1:]:
        path.write_bytes(b"no image")
    _, rows = draw(image_folder, images=4)
    assert [Path(row.name).name for row in rows] == [names[0].name]
    names[0].write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the images can be read; `vitrail check-data` says why"):
        draw(image_folder)
    settings = {"data.root": image_folder}
    with pytest.raises(ConfigError, match=r"^output=a\.pdf: ends in none of \.html, \.htm, \.png; give it one of"):
        vitrail.preview(TINY, settings, output="a.pdf")
    with pytest.raises(ConfigError, match=r"^views is 0; it must be at least 1$"):
        vitrail.preview(TINY, settings, views=0)
    with pytest.raises(ConfigError, match=r"is read, and would be replaced; choose another file$"):
        vitrail.preview(TINY, settings, output=_as_png(image_folder))


def _as_png(folder: Path) -> Path:
    path = folder / "train" / CLASSES[0] / "picture.png"
    Image.new("RGB", (32, 32)).save(path)
    return path
