"""`vitrail embed`: files of features, equal however they came about; what is found in them; and one-line errors."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import pytest

import vitrail
from support.chromium import CHROMIUM, Page
from support.commands import refused, run
from support.forked import python
from support.pages import check_page
from support.runs import torchrun
from support.tiny_model import save_tiny
from vitrail.embedding.map import FLATTEST, MARGIN, SIDE, fit_points
from vitrail.errors import DataError, MissingExtra

KILLED = """
import os, signal, sys
import vitrail.embedding.store as store
from vitrail.cli.app import main
store.SAVE_EVERY_S = 0
save = store._Store._save
def save_and_end(self):
    save(self)
    if self.done >= 10:
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "kill":
    store._Store._save = save_and_end
main(sys.argv[2:])
"""


def index_of(output: Path) -> list[dict[str, str]]:
    with output.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_features_come_with_an_index_and_a_description(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "birds.npy"
    assert run("embed", tiny_checkpoint, f"data.root={image_folder}", "--output", output) == 0
    printed = capsys.readouterr().out
    assert f"{output}: 36 images, 48 features each" in printed
    assert "--knn --probe --map map.html" in printed
    values = np.load(output)
    assert (values.shape, values.dtype) == ((36, 48), np.float32)
    rows = index_of(output)
    assert [row["split"] for row in rows] == ["train"] * 24 + ["val"] * 12
    assert rows[0] == {
        "path": f"{image_folder}/train/blue/blue_0.jpg", "class": "blue", "split": "train", "error": "",
    }  # fmt: skip
    about = json.loads(output.with_suffix(".json").read_text())
    assert (about["model"], about["module"], about["pooling"]) == ("tnt_ti_patch16_224", "blocks.1", "head")
    assert about["classes"] == ["blue", "green", "red"]
    assert about["preprocess"]["size"] == [32, 32]
    assert [(part["split"], part["rows"]) for part in about["parts"]] == [("train", 24), ("val", 12)]
    assert {path.name for path in tmp_path.iterdir()} >= {"birds.npy", "birds.csv", "birds.json"}
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_parquet_has_the_same_rows(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    data = {"data.root": str(image_folder)}
    vitrail.embed(tiny_checkpoint, settings=data, output=tmp_path / "a.npy", level=0, pool="max")
    vitrail.embed(tiny_checkpoint, settings=data, output=tmp_path / "b.parquet", level=0, pool="max")
    table = parquet.read_table(tmp_path / "b.parquet")
    assert (np.array(table["features"].to_pylist(), np.float32) == np.load(tmp_path / "a.npy")).all()
    rows = [{name: one[name] for name in ("path", "class", "split", "error")} for one in table.to_pylist()]
    assert rows == index_of(tmp_path / "a.npy")
    about = json.loads(table.schema.metadata[b"vitrail"])
    assert about == json.loads((tmp_path / "a.json").read_text())


def test_one_split_is_embedded_alone(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = {"data.root": str(image_folder)}
    vitrail.embed(tiny_checkpoint, settings=data, output=tmp_path / "all.npy")
    done = vitrail.embed(tiny_checkpoint, settings=data, output=tmp_path / "val.npy", split="val")
    assert done.images == 12
    assert (np.load(tmp_path / "val.npy") == np.load(tmp_path / "all.npy")[24:]).all()


def test_files_are_embedded_in_their_order_without_classes(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    images = [image_folder / "val/red/red_1.jpg", image_folder / "train/blue/blue_3.jpg"]
    done = vitrail.embed(tiny_checkpoint, images, output=tmp_path / "two.npy")
    assert done.images == 2
    assert [(row["path"], row["class"], row["split"]) for row in index_of(tmp_path / "two.npy")] == [
        (str(path), "", "") for path in images
    ]


def test_an_unreadable_image_keeps_its_row_and_is_named(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad = image_folder / "train/blue/=blue_1.jpg"
    (image_folder / "train/blue/blue_1.jpg").rename(bad)
    bad.write_bytes(b"no image")
    output = tmp_path / "birds.npy"
    assert run("embed", tiny_checkpoint, "data.root=images", "--output", output) == 2
    assert run("embed", tiny_checkpoint, f"data.root={image_folder}", "--output", output, "--knn") == 1
    printed = capsys.readouterr()
    assert f"{bad}: " in printed.err
    assert "1 image could not be read, with NaN in its row" in printed.out
    at = [index for index, row in enumerate(index_of(output)) if row["error"]]
    assert len(at) == 1
    assert index_of(output)[at[0]]["path"] == str(bad)
    assert np.isnan(np.load(output)).all(axis=1).nonzero()[0].tolist() == at


def test_a_killed_embed_goes_on_and_gives_the_same_bytes(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    words = ("embed", tiny_checkpoint, f"data.root={image_folder}", "data.workers=0", "--batch-size", 5, "--output")
    assert run(*words, tmp_path / "whole.npy") == 0
    killed = python(script, "kill", *words, tmp_path / "killed.npy")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed.npy").exists()
    state = json.loads((tmp_path / ".killed.npy.partial/0/state.json").read_text())
    assert state["done"] == 10
    assert python(script, "go on", *words, tmp_path / "killed.npy").returncode == 0
    for ending in (".npy", ".csv", ".json"):
        assert (tmp_path / f"whole{ending}").read_bytes() == (tmp_path / f"killed{ending}").read_bytes()
    assert not (tmp_path / ".killed.npy.partial").exists()


def test_two_processes_give_the_bytes_of_one(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [
        str(tiny_checkpoint),
        f"data.root={image_folder}",
        "data.workers=0",
        "--batch-size",
        "5",
        "--knn",
        "--output",
    ]
    assert run("embed", *words, tmp_path / "one.npy") == 0
    done = python(*torchrun(2, "-m", "vitrail", "embed", *words, str(tmp_path / "two.npy")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("36 images, 48 features each") == 1
    for ending in (".npy", ".csv", ".json"):
        assert (tmp_path / f"one{ending}").read_bytes() == (tmp_path / f"two{ending}").read_bytes()


def test_classes_are_told_apart_by_neighbours_and_a_linear_layer(image_folder: Path, tiny_checkpoint: Path) -> None:
    done = vitrail.embed(tiny_checkpoint, settings={"data.root": str(image_folder)}, knn=True, probe=True)
    assert done.knn is not None
    assert done.probe is not None
    assert (done.knn.value, done.probe.value) == (100, 100)
    assert done.knn.images == done.probe.images == 12
    assert "k-NN: top-1 100.0 % of 12 images" in str(done)
    assert done.records() == [
        {"checkpoint": str(tiny_checkpoint), "images": 36, "unreadable": 0, "knn_top1": 100, "probe_top1": 100}
    ]
    one_split = vitrail.embed(tiny_checkpoint, data={"root": str(image_folder)}, split="train", knn=True)
    assert one_split.knn is not None
    assert "without itself" in one_split.knn.how


def test_images_with_several_classes_have_a_mean_average_precision(image_folder: Path, tmp_path: Path) -> None:
    listed = tmp_path / "labels.csv"
    rows = ["path,labels,split"]
    for path in sorted(image_folder.rglob("*.jpg")):
        name, split = path.parent.name, path.parts[-3]
        also = {"blue": "|cold", "green": "|cold", "red": ""}[name]
        rows.append(f"{path.relative_to(image_folder)},{name}{also},{split}")
    listed.write_text("\n".join(rows) + "\n")
    weights = save_tiny(tmp_path)
    settings = {"data.list": str(listed), "data.root": str(image_folder)}
    done = vitrail.embed(weights, settings=settings, knn=True, probe=True, output=tmp_path / "a.npy")
    assert done.knn is not None
    assert done.probe is not None
    assert (done.knn.metric, done.probe.metric) == ("map", "map")
    assert min(done.knn.value, done.probe.value) > 95
    assert index_of(tmp_path / "a.npy")[0]["class"] == "blue|cold"


def test_the_nearest_images_are_found_and_shown(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    query, page = image_folder / "val/red/red_0.jpg", tmp_path / "found.html"
    words = ("--search", query, "--topk", 5, "--report", page)
    assert run("embed", tiny_checkpoint, f"data.root={image_folder}", *words) == 0
    printed = capsys.readouterr().out
    first = next(line for line in printed.splitlines() if line.split()[:2] == ["1", "1.000"])
    assert str(query) in first
    assert sum(line.split()[2:3] == ["red"] for line in printed.splitlines()) == 5
    text = page.read_text()
    check_page(text)
    assert text.count("<figure") == 6
    assert str(query) in text


def test_a_map_shows_every_image_and_says_how_it_was_made(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    page = tmp_path / "map.html"
    done = vitrail.embed(tiny_checkpoint, settings={"data.root": str(image_folder)}, map=page)
    assert done.notes[0].endswith("of 36 images")
    assert done.notes[0].startswith(("map by t-SNE", "map by UMAP"))
    text = page.read_text()
    check_page(text)
    assert text.count("<circle") == 36
    assert done.notes[0] in text
    # and again, the same
    vitrail.embed(tiny_checkpoint, settings={"data.root": str(image_folder)}, map=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == text


@pytest.mark.thorough
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_point_of_the_map_shows_its_image_and_a_class_shows_its_points(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    page = tmp_path / "map.html"
    vitrail.embed(tiny_checkpoint, settings={"data.root": str(image_folder)}, map=page)
    with Page() as browser:
        browser.open(page.as_uri())
        browser.ask("circles[3].dispatchEvent(new PointerEvent('pointerenter', {clientX: 50, clientY: 50}))")
        assert not browser.ask("box.hidden")
        assert browser.ask("box.innerText").startswith("blue, train")
        browser.until("box.querySelector('img').naturalWidth > 0")
        browser.ask("circles[3].dispatchEvent(new PointerEvent('pointerleave'))")
        assert browser.ask("box.hidden")
        browser.ask("buttons[1].click()")
        assert browser.ask("circles.filter(circle => !circle.classList.contains('faded')).length") == 12
        browser.ask("buttons[1].click()")
        assert browser.ask("document.querySelectorAll('circle.faded').length") == 0
        for width in (400, 1200):
            browser.resize(width, 800)
            assert browser.ask("document.documentElement.scrollWidth") <= width
            # a tap beside a point shows it, one far from all of them shows none
            browser.until("circles[3].getBoundingClientRect().width >= 8")
            centre = "const at = circles[3].getBoundingClientRect(), x = at.x + at.width / 2, y = at.y + at.height / 2;"
            tap = "map.dispatchEvent(new MouseEvent('click', {{clientX: x + {0}, clientY: y}}))"
            browser.ask(f"(() => {{ {centre} {tap.format(1)} }})()")
            assert not browser.ask("box.hidden")
            browser.ask(f"(() => {{ {centre} {tap.format(5000)} }})()")
            assert browser.ask("box.hidden")
        assert browser.complaints == []


def test_a_map_is_as_high_as_its_points_need() -> None:
    line = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    places, height = fit_points(line)
    assert height == round(FLATTEST * SIDE)
    assert np.allclose(sorted(places[:, 0]), [MARGIN, SIDE / 2, SIDE - MARGIN])
    assert np.allclose(places[:, 1], height / 2)
    square = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    places, height = fit_points(square)
    assert places.min() >= MARGIN - 1e-6
    assert (places <= np.array([SIDE, height]) - MARGIN + 1e-6).all()
    assert np.isclose(np.linalg.norm(places[0] - places[1]), np.linalg.norm(places[1] - places[2]))
    alone, height = fit_points(np.zeros((1, 2)))
    assert alone.tolist() == [[SIDE / 2, height / 2]]


@pytest.mark.parametrize("images", [1, 3])
def test_a_map_of_very_few_images_is_drawn_by_pca(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, images: int
) -> None:
    paths = sorted(image_folder.rglob("*.jpg"))[:images]
    done = vitrail.embed(tiny_checkpoint, paths, map=tmp_path / "map.html")
    assert done.notes == (f"map by PCA of {images} images",)


def test_weights_that_give_no_numbers_are_told(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    from vitrail.weights.checkpoint import save_model
    from vitrail.weights.loading import open_model

    opened = open_model(tiny_checkpoint)
    weights = {name: tensor.clone() for name, tensor in opened.weights.items()}
    weights["norm.weight"].fill_(3e38)  # finite in the file, and beyond float32 in the features
    save_model(tmp_path / "huge.safetensors", weights, opened.record)
    data = {"data.root": str(image_folder)}
    with pytest.raises(DataError, match="map: none of the images has features that are finite; give other weights"):
        vitrail.embed(tmp_path / "huge.safetensors", settings=data, map=tmp_path / "map.html")
    with pytest.raises(DataError, match="none of the images has features"):
        vitrail.embed(tmp_path / "huge.safetensors", settings=data, knn=True)


def test_the_image_to_search_for_is_read_before_all_else(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    output = tmp_path / "out/t.npy"
    output.parent.mkdir()
    for query in (tmp_path / "no.jpg", broken):
        words = (f"data.root={image_folder}", "--output", output, "--search", query)
        assert f"--search {query}: cannot be read (" in refused(capsys, "embed", tiny_checkpoint, *words)
        assert not list(output.parent.iterdir())


def test_pages_do_not_replace_what_another_option_writes(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    query = image_folder / "val/red/red_0.jpg"
    page, output = tmp_path / "a.html", tmp_path / "a.npy"
    for words in (
        ("--search", query, "--report", page, "--map", page),
        ("--output", output, "--map", tmp_path / "a.csv"),
    ):
        line = refused(capsys, "embed", tiny_checkpoint, f"data.root={image_folder}", *words)
        assert f"--map {words[-1]}: is written by another option too; choose another file" in line


def test_features_that_were_written_are_not_computed_again(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = {"data.root": str(image_folder)}
    vitrail.embed(tiny_checkpoint, settings=data, output=tmp_path / "a.npy")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("features.npy")}
    assert len(kept) == 2

    def compute(*_: object) -> None:
        raise AssertionError("features are computed again")

    monkeypatch.setattr("vitrail.embedding.extract.Extractor.compute", compute)
    done = vitrail.embed(tiny_checkpoint, settings=data, knn=True)
    assert done.knn is not None
    assert done.knn.value == 100
    assert not (tmp_path / ".a.npy.partial").exists()


def test_what_to_type_next_is_not_what_was_typed(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ("--output", tmp_path / "a.npy", "--search", image_folder / "val/red/red_0.jpg", "--topk", 5)
    assert run("embed", tiny_checkpoint, f"data.root={image_folder}", *words) == 0
    assert "next:" not in capsys.readouterr().out


def test_no_images_in_a_list_are_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(vitrail.VitrailError, match=r"^embed needs images: a file, a folder, a quoted glob"):
        vitrail.embed(tiny_checkpoint, [], output=tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--output", "nodir/x.npy"), "--output nodir/x.npy: there is no folder nodir; create or choose another"),
        (("--output", "x.txt"), "--output x.txt: is of an unknown kind; let it end in .npy or .parquet"),
        (("--level", "7"), "--level 7: the model has levels 0 to 1, or -2 to -1 from the end; give one of them"),
        (("--topk", "0"), "--topk is 0; it must be at least 1"),
        (("--batch-size", "0"), "--batch-size is 0; it must be at least 1"),
        (("--report", "x.html"), "--report x.html: shows the images that --search finds; give an image to search for"),
        (("--search", "no.jpg"), "--search no.jpg: cannot be read (No such file or directory); give an image"),
        (("evaluate.batch_size=3",), "evaluate: unknown section; sections: weights, data, preprocess"),
    ],
)
def test_wrong_options_are_one_line(
    image_folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture, words: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "embed", tiny_checkpoint, f"data.root={image_folder}", *words)


def test_what_is_there_is_not_replaced(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("mine")
    line = refused(capsys, "embed", tiny_checkpoint, f"data.root={image_folder}", "--output", tmp_path / "a.npy")
    assert f"{tmp_path / 'a.csv'} is there already; remove it, or choose another name" in line


def test_probes_need_classes_and_more_than_one(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    line = refused(capsys, "embed", tiny_checkpoint, image_folder / "val/red", "--probe")
    assert "--probe needs the classes of images, and files have none; give data.root=FOLDER" in line
    one = tmp_path / "one"
    one.mkdir()
    (image_folder / "train/red").rename(one / "red")
    line = refused(capsys, "embed", tiny_checkpoint, f"data.root={one}", "--knn")
    assert "--knn: all 8 images of" in line
    assert "have the same class, so nothing can be told apart; give images of two classes" in line


def test_files_that_are_no_weights_are_refused(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"no model")
    for path in (exported, tmp_path / "none.safetensors", image_folder / "val/red/red_0.jpg"):
        assert str(path) in refused(capsys, "embed", path, f"data.root={image_folder}")


def test_an_exported_file_gives_no_features(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vitrail.export(tiny_checkpoint, format="torchscript", output=tmp_path / "model.torchscript")
    with pytest.raises(vitrail.VitrailError, match="is an exported file, which gives logits alone; give the weight"):
        vitrail.embed(tmp_path / "model.torchscript", settings={"data.root": str(image_folder)})


def test_no_images_are_one_line(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(capsys, "embed", tiny_checkpoint, tmp_path / "empty")
    assert str(tmp_path / "empty") in refused(capsys, "embed", tiny_checkpoint, f"data.root={tmp_path / 'empty'}")


def test_parquet_without_its_library_names_the_extra(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"Parquet needs pyarrow.*pip install 'vitrail\[datasets\]', or let it end"):
        vitrail.embed(tiny_checkpoint, settings={"data.root": str(image_folder)}, output=tmp_path / "a.parquet")


def test_one_image_a_class_is_embedded_as_one_part(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    for name in ("blue", "red"):
        (few / name).mkdir(parents=True)
        (image_folder / f"val/{name}/{name}_0.jpg").rename(few / name / "one.jpg")
    done = vitrail.embed(tiny_checkpoint, settings={"data.root": str(few)}, output=tmp_path / "few.npy")
    assert done.images == 2
    with pytest.raises(DataError, match="2 images of 2 classes are too few to hold some out"):
        vitrail.embed(tiny_checkpoint, settings={"data.root": str(few)}, split="val")
