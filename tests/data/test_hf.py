"""Parquet files and data sets of `datasets`: the same images as in folders, mapped or read in place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.forked import TORCHRUN, python
from support.tiny_model import CLASSES
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve, to_yaml
from vitrail.config.sections import DataSection
from vitrail.data.loader import build_eval_loader, build_train_loader
from vitrail.data.opening import open_data, open_split
from vitrail.data.sampling import BatchSampler, Shuffle, WindowShuffle, shuffle_in_windows
from vitrail.data.sources import FileSource, count_by_class
from vitrail.data.tables.parquet import _MAPPED, ParquetTable
from vitrail.data.tables.rows import RowSource, find_storage_groups
from vitrail.errors import ConfigError, DataError, MissingExtra, Stopped
from vitrail.evaluation.evaluate import evaluate
from vitrail.evaluation.settings import inherited_data
from vitrail.images.pixels import RGB
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView
from vitrail.training.start import begin
from vitrail.training.train import train
from vitrail.weights.loading import open_model

pytest.importorskip("datasets", reason="needs the extra `datasets`", exc_type=ImportError)

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from support.runs import TINY, Signals, assert_same_run, assert_same_weights

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
HERE = Path(__file__).parent
PREPROCESS = Preprocess(size=(32, 32))


def rows_of(source: FileSource) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": source.path(i).read_bytes(), "path": source.paths.name(i)}, "label": int(source.labels[i])}
        for i in range(len(source))
    ]


def write(path: Path, rows: list[dict[str, Any]], features: Any = FEATURES, group: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), path, row_group_size=group)


@pytest.fixture
def parquet(image_folder: Path) -> Path:
    """Return a folder of Parquet files that hold the images of `image_folder` in its order, 24 and 12."""
    data = open_data(DataSection(root=str(image_folder)))
    assert isinstance(data.train, FileSource)
    assert isinstance(data.val, FileSource)
    train, folder = rows_of(data.train), image_folder.parent / "tables"
    write(folder / "train-00000-of-00002.parquet", train[:13])
    write(folder / "train-00001-of-00002.parquet", train[13:])
    write(folder / "validation-00000-of-00001.parquet", rows_of(data.val))
    return folder


def section(path: Path, **settings: Any) -> DataSection:
    return DataSection(name=f"hf:{path}", **settings)


def opened(path: Path, **settings: Any) -> tuple[RowSource, RowSource]:
    data = open_data(section(path, **settings))
    assert isinstance(data.train, RowSource)
    assert isinstance(data.val, RowSource)
    return data.train, data.val


@pytest.mark.parametrize("streaming", [False, True])
def test_the_images_are_those_of_the_folder(parquet: Path, image_folder: Path, streaming: bool) -> None:
    folder = open_data(DataSection(root=str(image_folder)))
    for ours, theirs in zip(opened(parquet, streaming=streaming), (folder.train, folder.val), strict=True):
        assert ours.classes == theirs.classes == CLASSES
        assert np.array_equal(ours.labels, theirs.labels)
        assert list(ours.identities()) == list(theirs.identities())
        for index in range(len(theirs)):
            assert torch.equal(ours.image(index, RGB), theirs.image(index, RGB))
    assert ours.name(5) == f"hf:{parquet} validation[5] green/green_1.jpg"
    example = Path(ours.example(image_folder))
    assert example.name == "row-00000.jpeg"
    assert example.read_bytes() == (image_folder / "val" / "blue" / "blue_0.jpg").read_bytes()


def test_names_of_classes_go_by_one_form_of_unicode_and_one_order(image_folder: Path) -> None:
    image = next(image_folder.rglob("*.jpg")).read_bytes()
    kind = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    names = ["class1", "class10", "class2", "caf\u00e9", "cafe\u0301"]
    rows = [{"image": {"bytes": image, "path": f"{i}.jpg"}, "label": name} for i, name in enumerate(2 * names)]
    path = image_folder.parent / "text" / "train-00000-of-00001.parquet"
    write(path, rows, kind)
    found = open_data(section(path.parent, val_split=None))
    assert found.classes == ("caf\u00e9", "class1", "class10", "class2")
    natural = open_data(section(path.parent, val_split=None, class_order="natural"))
    assert natural.classes == ("caf\u00e9", "class1", "class2", "class10")
    assert len(natural.train) + len(natural.val) == 10
    write(path.parent / "validation-00000-of-00001.parquet", [{**rows[0], "label": "Class1"}], kind)
    with pytest.raises(DataError, match="1 labels that are no class of the training images: Class1; 'Class1' and 'cla"):
        open_data(section(path.parent))

    declared = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names[:3])})
    path = image_folder.parent / "declared" / "train-00000-of-00001.parquet"
    write(path, [{**row, "label": i % 3} for i, row in enumerate(rows)], declared)
    with pytest.raises(ConfigError, match=r"order natural: .* in which index 1 is class10 and not class2; set data"):
        open_data(section(path.parent, val_split=None, class_order="natural"))
    twice = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    path = image_folder.parent / "twice" / "train-00000-of-00001.parquet"
    write(path, [{**row, "label": i % 5} for i, row in enumerate(rows)], twice)
    with pytest.raises(DataError, match="declares the class 'caf\u00e9' twice, in two forms of Unicode; rename one"):
        open_data(section(path.parent, val_split=None))


def evaluated(checkpoint: Path, *settings: str) -> dict[str, Any]:
    words = ["evaluate.device=cpu", "evaluate.batch_size=5", *settings]
    return {k: v for k, v in evaluate(checkpoint, [parse_command_line(words)]).to_dict().items() if k != "data"}


def test_evaluation_equals_the_folders(parquet: Path, image_folder: Path, tiny_checkpoint: Path) -> None:
    expected = evaluated(tiny_checkpoint, f"data.root={image_folder}", "data.workers=0")
    for more in ("data.streaming=false", "data.streaming=true"):
        assert evaluated(tiny_checkpoint, f"data.name=hf:{parquet}", "data.workers=2", more) == expected


@pytest.mark.thorough
def test_evaluation_by_two_processes_counts_each_row_once(parquet: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    words = [f"data.name=hf:{parquet}", "data.streaming=true"]
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node", 2, "-m", "vitrail", "evaluate", tiny_checkpoint]
    done = python(*launch, *words, "evaluate.device=cpu", "evaluate.batch_size=5", "--json", "both.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both.json").read_text())
    alone = json.loads(json.dumps(evaluated(tiny_checkpoint, *words)))
    assert {name: both[name] for name in alone} == alone


def settle(path: Path, *settings: str) -> TrainConfig:
    words = [f"data.name=hf:{path}", f"output.root={path.parent / 'runs'}", "train.epochs=2", *settings]
    return resolve(TrainConfig, [read_yaml(TINY), parse_command_line(words)]).config


@pytest.mark.thorough
def test_a_run_has_the_weights_of_the_folders_for_any_workers(parquet: Path, image_folder: Path) -> None:
    words = [f"data.root={image_folder}", f"output.root={image_folder.parent / 'runs'}", "train.epochs=2"]
    expected = train(resolve(TrainConfig, [read_yaml(TINY), parse_command_line(words)]).config, name="folder")
    for workers in (0, 2):
        found = train(settle(parquet, f"data.workers={workers}"), name="tables")
        assert_same_weights(found.folder / "best.safetensors", expected.folder / "best.safetensors")
    record = open_model(found.folder / "best.safetensors").record
    assert record.provenance["images"]
    assert evaluate(found.folder / "best.safetensors").accuracy.top1 == found.best["val_top1"]  # without a setting


@pytest.mark.thorough
def test_a_streamed_run_stopped_after_any_update_goes_on_to_the_last_bit(parquet: Path) -> None:
    settings = ("data.streaming=true", "data.shuffle_buffer=6", "augment.repeats=2")
    whole = train(settle(parquet, *settings, "output.name=whole")).folder
    stopped = whole.with_name("stopped")
    with pytest.raises(Stopped, match="after update 2 of 6"):
        train(settle(parquet, *settings, "output.name=stopped"), display=Signals(2))
    with pytest.raises(Stopped, match="after update 5 of 6"):
        train(settle(parquet, *settings, "output.name=stopped", "data.workers=2"), resume=stopped, display=Signals(3))
    train(settle(parquet, *settings, "output.name=stopped"), resume=stopped)
    assert_same_run(stopped, whole)


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_a_window_order_has_each_image_once_and_few_groups_at_a_time(
    counts: list[int], window: int, seed: int, epoch: int
) -> None:
    groups = np.repeat(np.arange(len(counts)) * 7, counts)
    order = shuffle_in_windows(groups, window, seed, epoch)
    assert sorted(order[:, 0].tolist()) == list(range(len(groups)))
    assert not order[:, 1].any()
    read = groups[order[:, 0]]
    row = list(dict.fromkeys(read.tolist()))
    assert np.array_equal(order, shuffle_in_windows(groups, window, seed, epoch))
    for group in row:  # between its first and its last image come fewer than a window and two groups of others
        places = np.flatnonzero(read == group)
        assert places[-1] - places[0] <= window + 2 * max(counts)


def test_a_window_order_is_another_in_each_epoch_and_for_ever_the_same() -> None:
    groups = np.repeat(np.arange(4), 3)
    orders = [shuffle_in_windows(groups, 4, 0, epoch)[:, 0].tolist() for epoch in range(2)]
    assert orders == [[1, 0, 7, 2, 8, 6, 5, 4, 3, 9, 11, 10], [10, 11, 9, 8, 7, 6, 3, 4, 5, 1, 0, 2]]
    assert len({tuple(shuffle_in_windows(groups, 4, 0, epoch)[:, 0]) for epoch in range(50)}) == 50
    twice = shuffle_in_windows(groups, 4, 0, 0, repeats=2)
    assert twice.tolist() == [[index, copy] for index in orders[0][:6] for copy in (0, 1)]


def test_a_window_as_long_as_the_set_shuffles_it_whole() -> None:
    groups = np.repeat(np.arange(100), 10)
    near = [shuffle_in_windows(groups, window, 0, 0)[:, 0] for window in (1, 100, 10_000)]
    # how far apart images come that are stored side by side
    apart = [np.median(np.abs(np.diff(np.argsort(order)))) for order in near]
    assert apart[0] < 10 < apart[1] < 60 < 200 < apart[2]


def read_epoch(train: RowSource, workers: int) -> list[int]:
    view = TrainView(
        size=(8, 8), scale=(0.5, 1.0), ratio=(1.0, 1.0), interpolation="bilinear", hflip=0.5, auto_augment=None,
        color_jitter=None, mean=(0.5, 0.5, 0.5),
    )  # fmt: skip
    groups = find_storage_groups(train)
    order = Shuffle(len(train), seed=0) if groups is None else WindowShuffle(groups, 6, seed=0)
    sampler = BatchSampler(order, 4)
    loader = build_train_loader(train, view, RGB, sampler, seed=0, workers=workers)
    return [index for batch in loader for index in batch.indices.tolist()]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where row groups are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail" / "parquet"


def test_each_row_group_is_fetched_once_by_all_workers_and_again_only_when_it_had_to_go(
    parquet: Path, cache: Path
) -> None:
    train, _ = opened(parquet, streaming=True)
    indices = read_epoch(train, workers=2)
    assert sorted(indices) == list(range(24))
    kept = {path.name: path.stat().st_ino for path in cache.glob("*.arrow")}
    assert len(kept) == 5 + 4 + 1  # of the first file, of the second, and the first of the validation images
    assert read_epoch(train, workers=0) == indices
    assert {path.name: path.stat().st_ino for path in cache.glob("*.arrow")} == kept
    # cut off, as by a crash
    path = next(cache.glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-40])
    assert read_epoch(opened(parquet, streaming=True)[0], workers=2) == indices
    # too small for all, and with a file that a killed process left
    left = cache / "ab.tmp"
    left.touch()
    os.utime(left, (0, 0))
    size = max(path.stat().st_size for path in cache.glob("*.arrow"))
    table = train.table
    assert isinstance(table, ParquetTable)
    for path in cache.glob("*.arrow"):
        path.unlink()
    _MAPPED.clear()
    small = ParquetTable.open(table.files, cache, 3 * size)
    for row in range(24):
        assert small.cell("image", row) == table.cell("image", row)
        assert sum(path.stat().st_size for path in cache.glob("*.arrow")) <= 3 * size
    assert not left.exists()


def test_files_that_change_are_read_again(parquet: Path, cache: Path) -> None:
    before = opened(parquet, streaming=True)[0].encoded(0)
    rows = pq.read_table(parquet / "train-00000-of-00002.parquet").to_pylist()
    write(parquet / "train-00000-of-00002.parquet", rows[::-1])
    after = opened(parquet, streaming=True)[0]
    assert after.encoded(12) == before != after.encoded(0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_goes_away_ends_the_run_in_one_line_whatever_bad_files_says(
    parquet: Path, cache: Path, workers: int
) -> None:
    _, val = opened(parquet, streaming=True)
    (parquet / "validation-00000-of-00001.parquet").unlink()
    loader = build_eval_loader(val, PREPROCESS, batch_size=4, workers=workers, bad_files="skip")
    with pytest.raises(DataError, match=r"^\S*validation-0\S*: its row group 1 could not be read and kept in .*\)\Z"):
        list(loader)


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_without_an_image_or_with_a_broken_one_are_counted(parquet: Path, streaming: bool) -> None:
    file = parquet / "validation-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[0]["image"] = None
    rows[3]["image"]["bytes"] = rows[3]["image"]["bytes"][:200]
    rows[7]["image"] = {"bytes": None, "path": "gone.jpg"}
    write(file, rows)
    _, val = opened(parquet, streaming=streaming)
    (batch,) = build_eval_loader(val, PREPROCESS, batch_size=12, workers=0)
    where = f"hf:{parquet} validation"
    assert batch.indices.tolist() == [1, 2, 4, 5, 6, 8, 9, 10, 11]
    assert [name for name, _ in batch.bad] == [f"{where}[0]", f"{where}[3] blue/blue_3.jpg", f"{where}[7] gone.jpg"]
    assert batch.bad[0][1] == "the row has no image"
    assert batch.bad[2][1] == "No such file or directory"


def test_paths_alone_are_read_where_the_files_are_there(parquet: Path, image_folder: Path) -> None:
    file = parquet / "validation-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        row["image"] = {"bytes": None, "path": str(image_folder / "val" / row["image"]["path"])}
    write(file, rows)
    _, val = opened(parquet)
    assert torch.equal(val.image(3, RGB), opened(parquet)[1].image(3, RGB))
    (image_folder / "val" / "blue" / "blue_0.jpg").unlink()
    with pytest.raises(DataError, match=r"validation\[0\] .*the row has the path of an image and not its bytes"):
        opened(parquet)


def test_a_single_file_and_a_saved_set_are_divided_as_folders_are(parquet: Path, tmp_path: Path) -> None:
    file = parquet / "train-00000-of-00002.parquet"
    saved = datasets.Dataset.from_parquet(str(file))
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    parts = [opened(file), opened(file, streaming=True), opened(tmp_path / "saved"), opened(tmp_path / "splits")]
    for rest, val in parts:
        assert len(rest) + len(val) == 13
        assert val.notes[-1] == "held out 3 of 13 images, 20% of each class, for validation"
    for one, other in ((0, 1), (2, 3)):  # saving cuts the paths down to the names
        assert list(parts[one][1].identities()) == list(parts[other][1].identities())
    whole, _ = open_split(section(file), "all")
    assert len(whole) == 13
    held_out, _ = open_split(section(file), "val")
    assert list(held_out.identities()) == list(parts[0][1].identities())
    even, odd = opened(file, folds=2, group_regex="[0-9](?=.jpg)")
    assert not {name[-5] for name in even.identities()} & {name[-5] for name in odd.identities()}
    with pytest.raises(ConfigError, match=r"^evaluate\.split all: hf:\S+ has a training and a test part"):
        open_split(section(parquet), "all")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({}, None),
        ({"val_split": "validation"}, None),
        ({"val_split": "test"}, "has no split test; its splits: train, validation; set data.val_split=validation,"),
        ({"val_split": "train"}, r"data\.val_split train: is the split that is trained on"),
        ({"train_split": "all"}, "has no split all to train on; its splits: train, validation; set data.train_spl"),
    ],
)
def test_splits_are_taken_by_their_names(parquet: Path, settings: dict[str, str], error: str | None) -> None:
    if error:
        with pytest.raises((ConfigError, DataError), match=error):
            opened(parquet, **settings)
    else:
        assert [len(part) for part in opened(parquet, **settings)] == [24, 12]


def test_a_split_for_validation_may_be_alone(parquet: Path) -> None:
    for path in parquet.glob("train-*"):
        path.unlink()
    source, _ = open_split(section(parquet), "val")
    assert len(source) == 12
    with pytest.raises(DataError, match=r"has no split train to train on; its splits: validation; set data\.train_sp"):
        open_data(section(parquet))


def remade(parquet: Path, features: dict[str, Any], remake: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    for path in parquet.iterdir():
        rows = [remake(row) for row in pq.read_table(path).to_pylist()]
        write(path, rows, datasets.Features(features))
    return parquet


STRING, NUMBER = datasets.Value("string"), datasets.Value("int64")
BYTES = datasets.Value("binary")


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_without_declared_types_are_found_and_their_classes_named(parquet: Path, streaming: bool) -> None:
    remade(
        parquet,
        {"id": NUMBER, "jpg": BYTES, "category": STRING},
        lambda row: {"id": 7, "jpg": row["image"]["bytes"], "category": ("zebra", "ant", "bee")[row["label"]]},
    )
    train, val = opened(parquet, streaming=streaming)
    assert train.classes == val.classes == ("ant", "bee", "zebra")
    assert train.labels.tolist() == [2] * 8 + [0] * 8 + [1] * 8
    assert list(train.identities())[:2] == [b"#0", b"#1"]
    assert train.name(1) == f"hf:{parquet} train[1]"
    assert train.image(1, RGB).shape == (3, 32, 40)


def test_numbers_are_names_which_is_told_and_copies_of_a_name_stay_apart(parquet: Path) -> None:
    remade(
        parquet,
        {"picture": {"bytes": BYTES, "path": STRING}, "label": NUMBER},
        lambda row: {
            "picture": {"bytes": row["image"]["bytes"], "path": row["image"]["path"][-5:]},
            "label": 10 * row["label"] + 1,
        },
    )
    train, _ = opened(parquet)
    assert train.classes == ("1", "11", "21")
    assert train.notes == (f"hf:{parquet}: the labels are numbers without names; the classes are called 1, 11, 21",)
    assert list(train.identities())[8:10] == [b"0.jpg#8", b"1.jpg#9"]


LISTS = [
    pytest.param(datasets.List(datasets.ClassLabel(names=list(CLASSES))), "labels", {}, id="declared"),
    pytest.param(datasets.List(STRING), "labels", {}, id="names"),
    pytest.param(datasets.LargeList(STRING), "tags", {"labels_column": "tags"}, id="given"),
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("feature", "column", "settings"), LISTS)
def test_lists_of_labels_make_images_of_several_classes(
    parquet: Path, feature: Any, column: str, settings: dict[str, str], streaming: bool
) -> None:
    def sets(row: dict[str, Any]) -> list[str]:
        """Return the row's own class, and red beside every green; the first blue has none."""
        if row["image"]["path"].endswith("blue_0.jpg"):
            return []
        return [CLASSES[row["label"]], *(["red"] if row["label"] == 1 else [])]

    def remake(row: dict[str, Any]) -> dict[str, Any]:
        names = sets(row)
        declared = isinstance(feature.feature, datasets.ClassLabel)
        return {"image": row["image"], column: [CLASSES.index(name) for name in names] if declared else names}

    plain = {part: opened(parquet, streaming=streaming)[part] for part in (0, 1)}
    remade(parquet, {"image": datasets.Image(), column: feature}, remake)
    for part, source in enumerate(opened(parquet, streaming=streaming, **settings)):
        assert source.classes == CLASSES
        assert source.label_sets is not None
        assert len(source) == len(plain[part])
        for index in range(len(source)):
            own = CLASSES[plain[part].labels[index]]
            path = source.paths.name(index)
            wanted = set() if path.endswith("blue_0.jpg") else {own, *(["red"] if own == "green" else [])}
            has = {name for name, there in zip(CLASSES, source.label_sets[source.labels[index]], strict=True) if there}
            assert has == wanted, path
        counts = count_by_class(source).tolist()
        assert counts == ([7, 8, 16] if part == 0 else [3, 4, 8])


def test_a_run_on_lists_of_labels_has_the_weights_of_one_on_the_same_list(parquet: Path, image_folder: Path) -> None:
    rows = ["path,labels,split"]
    for split in ("train", "val"):
        for path in sorted((image_folder / split).rglob("*.jpg")):
            rows.append(f"{path.relative_to(image_folder)},{path.parent.name}|red,{split}".replace("red|red", "red"))
    (image_folder / "list.csv").write_text("\n".join(rows) + "\n")
    remade(
        parquet, {"image": datasets.Image(), "labels": datasets.List(STRING)},
        lambda row: {"image": row["image"], "labels": sorted({CLASSES[row["label"]], "red"})},
    )  # fmt: skip
    plain = "augment.label_smoothing=0"
    words = [f"data.list={image_folder}/list.csv", f"data.root={image_folder}", f"output.root={parquet.parent}/runs"]
    config = resolve(TrainConfig, [read_yaml(TINY), parse_command_line([*words, "train.epochs=2", plain])]).config
    listed, found = train(config, name="list"), train(settle(parquet, plain), name="rows")
    assert_same_weights(found.folder / "best.safetensors", listed.folder / "best.safetensors")
    assert found.best["val_map"] == listed.best["val_map"] == evaluate(found.folder / "best.safetensors").accuracy.map


def test_rows_without_a_list_are_counted(parquet: Path) -> None:
    remade(
        parquet, {"image": datasets.Image(), "labels": datasets.List(STRING)},
        lambda row: {"image": row["image"], "labels": None if row["label"] == 2 else [CLASSES[row["label"]]]},
    )  # fmt: skip
    with pytest.raises(DataError, match="train, column labels: 8 of 24 rows have no list; an empty one is no class"):
        opened(parquet)


def test_lists_of_0_and_1_are_not_taken_for_classes(parquet: Path) -> None:
    remade(
        parquet, {"image": datasets.Image(), "labels": datasets.List(NUMBER)},
        lambda row: {"image": row["image"], "labels": [int(row["label"] == one) for one in range(3)]},
    )  # fmt: skip
    with pytest.raises(DataError, match="column labels: 24 of 24 rows name a class twice, as 0 and 1 for each class"):
        opened(parquet)


def test_a_class_without_images_is_told(parquet: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=[*CLASSES, "white"])}
    train, _ = opened(remade(parquet, features, lambda row: row), root="data")
    assert train.notes == (
        f"data.root data: is not looked at, as data.name is hf:{parquet}",
        f"hf:{parquet} train: 1 of 4 classes have no image: white",
    )


TWICE = {"image": datasets.Image(), "mask": datasets.Image(), "label": NUMBER, "text": STRING}


@pytest.mark.parametrize(
    ("features", "remake", "settings", "error"),
    [
        (
            TWICE,
            lambda row: {**row, "mask": row["image"], "text": "t"},
            {},
            r"^hf:\S+: image and mask could all be the column of images; set data\.image_column to one of them; its "
            r"columns: image \(Image\), mask \(Image\), label \(int64\), text \(string\)$",
        ),
        (
            TWICE,
            lambda row: {**row, "mask": row["image"], "text": "t"},
            {"image_column": "imgae"},
            r"^data\.image_column 'imgae': hf:\S+ has no such column; did you mean 'image'\? its columns: image ",
        ),
        (
            TWICE,
            lambda row: {**row, "mask": row["image"], "text": "t"},
            {"image_column": "text"},
            r"^data\.image_column 'text': hf:\S+ has no images there; its columns: ",
        ),
        (
            {"image": datasets.Image(), "text": STRING},
            lambda row: {"image": row["image"], "text": "t"},
            {},
            r"^hf:\S+: no column can be told to hold labels; set data\.label_column \(one class an image\) or "
            r"data\.labels_column \(lists of them\), of text or whole numbers; its columns: image \(Image\), text",
        ),
        (
            {"image": datasets.Image(), "tags": datasets.List(STRING)},
            lambda row: {"image": row["image"], "tags": ["a"]},
            {"label_column": "tags"},
            r"^data\.label_column 'tags': hf:\S+ has no labels there; for several classes an image, set "
            r"data\.labels_column=tags; its columns: ",
        ),
        (
            {"image": datasets.Image(), "label": STRING, "labels": datasets.List(STRING)},
            lambda row: {"image": row["image"], "label": "a", "labels": ["a"]},
            {},
            r"^hf:\S+: has a column 'label' and lists in 'labels'; choose with data\.label_column=label \(one class an "
            r"image\) or data\.labels_column=labels \(several\)$",
        ),
        (
            {"image": datasets.Image(), "labels": datasets.List(NUMBER)},
            lambda row: {"image": row["image"], "labels": [1, -1] if row["label"] else [0]},
            {},
            r"^hf:\S+ train, column labels: 16 of 40 labels in its lists name no class \(-1 or null\), as test sets",
        ),
        (
            {"image": datasets.Image(), "label": STRING},
            lambda row: {"image": row["image"], "label": ["a|b", "b", "c"][row["label"]]},
            {},
            r"^hf:\S+, column label: the label 'a\|b' holds '\|', which stands between classes",
        ),
        (
            {"image": datasets.Image(), "label": STRING},
            lambda row: {"image": row["image"], "label": ["a", "", "c"][row["label"]]},
            {},
            r"^hf:\S+, column label: has an empty label; it must be text$",
        ),
        (
            {"image": datasets.Image(), "text": STRING},
            lambda row: {"image": row["image"], "text": "t"},
            {"label_column": "text"},
            r"^hf:\S+: column text has 1 classes; a classifier needs at least two$",
        ),
        (
            dict(FEATURES),
            lambda row: {**row, "label": -1 if row["label"] == 2 else None if row["label"] == 1 else 0},
            {},
            r"^hf:\S+ train, column label: 16 of 24 rows have no label \(-1 or null\), as test sets often do",
        ),
        (
            {"image": datasets.Image(), "label": STRING},
            lambda row: {**row, "label": row["image"]["path"][-5]},
            {},
            None,
        ),
    ],
)
def test_columns_that_cannot_be_told_are_listed(
    parquet: Path, features: dict[str, Any], remake: Any, settings: dict[str, str], error: str | None
) -> None:
    remade(parquet, features, remake)
    if error is None:
        write(parquet / "validation-00000-of-00001.parquet", [], datasets.Features(features))
        error = r"^hf:\S+ validation: has no rows$|^data\.name hf:\S+: cannot be opened \(\S+"
    for streaming in (False, True):
        with pytest.raises((ConfigError, DataError), match=error):
            opened(parquet, streaming=streaming, **settings)


def test_paths_of_no_type_are_no_names(parquet: Path) -> None:
    images = [
        {"bytes": row["image"]["bytes"], "path": None}
        for row in pq.read_table(parquet / "train-00000-of-00002.parquet").to_pylist()
    ]
    table = pa.table({"image": images, "label": [str(11 - index % 12) for index in range(len(images))]})
    assert table.schema.field("image").type.field("path").type == pa.null()
    alone = parquet.with_name("alone.parquet")
    pq.write_table(table, alone)
    train, val = opened(alone, val_fraction=0.5)
    assert len(train) + len(val) == len(images)
    assert train.classes == tuple(map(str, range(12)))  # in the order of numbers
    assert train.name(0) == f"hf:{alone} train[{train.rows[0]}]"


def test_settings_that_are_for_files_are_refused(parquet: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_data(section(parquet, bad_files="quarantine"))
    assert str(caught.value) == (
        f"data.bad_files=quarantine: leaves out what the check has found, and data.name hf:{parquet} is not checked; "
        "set skip, which counts and names what cannot be read, or error"
    )
    with pytest.raises(ConfigError, match=r"^data\.folds=3: there is a part to validate with, hf:\S+ validation, so "):
        opened(parquet, folds=3)


def test_whole_numbers_with_a_point_are_whole_numbers(parquet: Path) -> None:
    features = {"image": datasets.Image(), "label": STRING}
    remade(parquet, features, lambda row: {**row, "label": f"{5 * row['label']}.0"})
    train, val = opened(parquet)
    assert train.classes == val.classes == ("0", "5", "10")
    assert f"hf:{parquet}: the labels are whole numbers written with a point, such as " in "".join(train.notes)


def test_a_label_that_training_does_not_have_is_named(parquet: Path) -> None:
    features = {"image": datasets.Image(), "label": STRING}
    remade(parquet, features, lambda row: {**row, "label": CLASSES[row["label"]]})
    file = parquet / "validation-00000-of-00001.parquet"
    rows = pq.read_table(file).to_pylist()
    rows[5]["label"] = "owl"
    write(file, rows, datasets.Features(features))
    with pytest.raises(DataError, match=r"validation, column label: has 1 labels that are no class of .*: owl$"):
        opened(parquet)


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("hf:./nothing", {}, r"^data\.name hf:\./nothing: there is no such folder or file$"),
        ("hf:a/b/c", {}, r"^data\.name hf:a/b/c: write hf:OWNER/NAME for a data set of the Hub, and hf:/FOLDER, "),
        ("hf:", {}, r"^data\.name hf:: write hf:OWNER/NAME"),
        (f"hf:{TINY}", {}, r"tiny\.yaml: is no \.parquet file; give one, or the folder with all of them$"),
        (
            "hf:./tests",
            {"revision": "main"},
            r"^data\.revision main: is for data sets of the Hub; hf:\./tests is a path",
        ),
        ("hf:owner/pets", {}, r"^data\.name hf:owner/pets: cannot be opened \(Couldn't reach 'owner/pets' on the Hub"),
        ("hf:tests", {}, r"cannot be opened .*; for the folder here write hf:\./tests$"),
        (
            "hf:./tests",
            {"manifest": "x"},
            r"^data\.manifest x: is for images in folders, lists and shards; data\.name is ",
        ),
        ("digits", {"streaming": True}, r"streaming is True; it is for data sets whose name begins with hf:"),
        ("digitz", {}, r"known sets: .*, flowers102, and hf:OWNER/NAME$"),
    ],
)
def test_a_name_that_is_no_set_is_refused(
    name: str, settings: dict[str, Any], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE.parents[1])
    words = [f"data.{key}={value}" for key, value in {"name": name, **settings}.items()]
    with pytest.raises((ConfigError, DataError), match=error):
        open_data(resolve(TrainConfig, [parse_command_line(words)]).config.data)


def test_what_cannot_be_streamed_is_refused(parquet: Path, image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.cache_gb 1e-05: is too small to shuffle 5 images of hf:\S+ train, "):
        opened(parquet, streaming=True, cache_gb=1e-5, shuffle_buffer=5)
    with pytest.raises(
        ConfigError, match=r"is not in Parquet files but found by datasets as imagefolder; set data\.str"
    ):
        opened(image_folder, streaming=True)
    # what `datasets` knows otherwise is read through its cache, which has whole paths
    assert next(opened(image_folder)[0].identities()) == b"blue/blue_0.jpg"
    (parquet / "train-00000-of-00002.parquet").write_bytes(b"PAR1 and more")
    with pytest.raises(DataError, match=r"train-00000\S+: cannot be read as Parquet \("):
        opened(parquet, streaming=True)
    with pytest.raises(DataError, match=r"^data\.name hf:\S+: cannot be opened \("):
        opened(parquet)
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(parquet / "saved")
    with pytest.raises(ConfigError, match=r"was saved by datasets, which maps it as it is; drop this setting$"):
        opened(parquet / "saved", streaming=True)
    with pytest.raises(ConfigError, match=r"^balance\.sampler is sqrt, which draws from all over the set; data\.strea"):
        settle(parquet, "data.streaming=true", "balance.sampler=sqrt")


def test_a_missing_package_is_named(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.tables.hub.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"^data\.name begins with hf:.*; run: pip install datasets$"):
        opened(parquet)


def test_nothing_else_imports_datasets(tmp_path: Path) -> None:
    code = "import sys, vitrail.training.train, vitrail.data.tables.hub\n"
    code += "assert not {'datasets', 'pyarrow'} & sys.modules.keys()"
    (tmp_path / "script.py").write_text(code)
    done = python(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr


HUB = """
import sys
from dataclasses import replace
import datasets, huggingface_hub
from vitrail.config.sections import DataSection
from vitrail.data.opening import open_data
from vitrail.data.tables.hub import pin_revision
from vitrail.errors import DataError

def refused(section):
    try:
        open_data(pin_revision(section))
    except DataError as error:
        print(error)

section = DataSection(name="hf:owner/pets", shuffle_buffer=4)
pinned = pin_revision(section)
print(pinned.revision)
streamed = open_data(replace(pinned, streaming=True)).train
mapped = open_data(pinned).train
assert mapped.labels.tolist() == streamed.labels.tolist()
assert [mapped.encoded(i) for i in range(24)] == [streamed.encoded(i) for i in range(24)]
print(mapped.name(0))
refused(replace(section, revision="v9"))
refused(replace(section, name="hf:owner/cats"))
refused(replace(section, subset="small"))
huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
assert pin_revision(section) == pinned
print(*open_data(section).train.notes)
refused(replace(section, revision="0" * 40))
refused(replace(section, streaming=True))
"""


@pytest.fixture
def hub(parquet: Path) -> Iterator[str]:
    """Return the address of a server that answers as the Hub does for the set owner/pets."""
    program = HERE.parent / "support" / "hub_server.py"
    server = subprocess.Popen([sys.executable, program, parquet], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.kill()
    server.wait()
    server.stdout.close()


@pytest.mark.thorough
def test_a_set_of_the_hub_is_pinned_to_its_commit_and_found_again_without_a_network(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE")
    done = subprocess.run([sys.executable, "-c", HUB], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    commit, name, *refused = done.stdout.splitlines()
    assert commit == "c0" * 20
    assert name == "hf:owner/pets train[0] blue/blue_0.jpg"
    where = "data.name hf:owner/pets: cannot be opened"
    assert refused == [
        f"{where} (Revision 'v9' doesn't exist for dataset 'owner/pets' on the Hub.)",
        "data.name hf:owner/cats: cannot be opened (Dataset 'owner/cats' doesn't exist on the Hub or cannot be "
        "accessed.)",
        f"{where} (BuilderConfig 'small' not found. Available: ['default'])",
        f"hf:owner/pets: the Hub cannot be reached; commit {commit} is taken from the cache",
        f"hf:owner/pets: the Hub cannot be reached, and the newest commit in the cache is {commit}, not {'0' * 40}",
        "hf:owner/pets: the Hub cannot be reached, which data.streaming reads from",
    ]


def test_a_run_is_resumed_with_the_commit_that_it_began_with(tmp_path: Path) -> None:
    words = ["data.name=hf:owner/pets", f"output.root={tmp_path}", "output.name=run"]
    config = begin(str(TINY), words).config
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(replace(config, data=replace(config.data, revision="c0" * 20))))
    assert begin(str(TINY), words[:1], resume=folder).config.data.revision == "c0" * 20
    with pytest.raises(ConfigError, match=r"data\.revision is c0\S+ there and v2 here"):
        begin(str(TINY), [*words[:1], "data.revision=v2"], resume=folder)


def test_weights_of_a_table_are_evaluated_on_a_folder_that_is_given(
    parquet: Path, image_folder: Path, tiny_checkpoint: Path
) -> None:
    record = replace(
        open_model(tiny_checkpoint).record, recipe={"data": {"name": f"hf:{parquet}", "val_fraction": 0.3}}
    )
    (layer,) = inherited_data(record, [parse_command_line([f"data.root={image_folder}"])])
    assert layer.values == {"data": {"val_fraction": 0.3}}
