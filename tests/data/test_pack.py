"""Shards hold what the folder holds: bytes, order, division, weights and counts; what is wrong with them is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import vitrail.data.pack
import vitrail.whole_folder
from support.forked import SERVER
from support.runs import TINY
from vitrail.cli.app import main
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.config.sections import DataSection
from vitrail.data.audit.scan import check_images
from vitrail.data.manifest import load_manifest
from vitrail.data.opening import open_data, open_manifest, open_split
from vitrail.data.pack import Packed, pack
from vitrail.data.shards import INDEX, ShardSource, _opened
from vitrail.data.sources import FileSource, fingerprint
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.evaluation.evaluate import evaluate
from vitrail.training.train import train
from vitrail.weights.checkpoint import Record, parse_record


class Notebook(Quiet):
    """A display that remembers."""

    def __init__(self) -> None:
        self.warnings, self.notes = [], []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


def packed(root: Path, output: Path, shard_bytes: int = 20_000, display: Quiet | None = None, **settings) -> Packed:
    return pack(DataSection(root=str(root), workers=0, **settings), output, shard_bytes, display or Quiet())


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """Return the shards of `image_folder`, several for each part."""
    return packed(image_folder, tmp_path / "shards").folder


@pytest.fixture
def flat(image_folder: Path, tmp_path: Path) -> Path:
    """Return class folders alone, with names that tar files and WebDataset make mischief of."""
    root = tmp_path / "flat"
    shutil.copytree(image_folder / "train", root)
    for number, name in enumerate(("a.b.jpg", "a.c.jpg", "a.JPEG", "sub/deep/" + 120 * "n" + ".jpg")):
        target = root / "red" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "green" / f"green_{number}.jpg", target)
    shutil.copy(root / "green" / "green_5.jpg", os.fsencode(root / "red") + b"/caf\xe9.jpg")
    return root


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def train_on(root: Path, folder: Path, *settings: str) -> Path:
    layers = [read_yaml(TINY), parse_command_line([f"data.root={root}", f"output.root={folder}", *settings])]
    return train(resolve(TrainConfig, layers).config, name="tiny").folder


def load_record(path: Path) -> Record:
    with safe_open(path, framework="pt") as file:
        return parse_record(file.metadata(), path)


def assert_same_images(a: FileSource, b: FileSource) -> None:
    assert [*a.identities()] == [*b.identities()]
    assert np.array_equal(a.labels, b.labels)
    assert a.classes == b.classes
    assert fingerprint(a) == fingerprint(b)
    assert [a.encoded(index) for index in range(len(a))] == [b.encoded(index) for index in range(len(b))]


def test_shards_hold_the_files_of_the_folder_in_the_order_of_training(image_folder: Path, shards: Path) -> None:
    folder, tars = open_data(DataSection(root=str(image_folder))), open_data(DataSection(root=str(shards)))
    for ours, theirs in ((tars.train, folder.train), (tars.val, folder.val)):
        assert isinstance(ours, ShardSource)
        assert_same_images(ours, theirs)
    assert tars.manifest.hash == folder.manifest.hash
    assert tars.train.name(0) == str(shards / "train" / "blue" / "blue_0.jpg")
    sizes = {path.name: path.stat().st_size for path in shards.glob("*.tar")}
    assert max(sizes.values()) <= 20_000
    assert sorted(sizes) == sorted(shard.name for shard in tars.manifest.packed.shards)
    assert {name.split("-")[0] for name in sizes} == {"train", "val"}
    assert len(sizes) >= 4


def test_division_and_every_name_are_the_folders(flat: Path, tmp_path: Path) -> None:
    done = packed(flat, tmp_path / "shards", folds=3)
    for settings in ({"folds": 3, "fold": 1}, {"val_fraction": 0.3}):
        ours, theirs = (open_data(DataSection(root=str(root), **settings)) for root in (done.folder, flat))
        assert_same_images(ours.train, theirs.train)
        assert_same_images(ours.val, theirs.val)
        assert ours.notes == theirs.notes
    whole = open_split(DataSection(root=str(done.folder)), "all")[0]
    assert_same_images(whole, open_split(DataSection(root=str(flat)), "all")[0])
    assert {path.name[:7] for path in done.folder.glob("*.tar")} == {"images-"}


def test_a_division_stays_when_the_folder_has_grown_before_it_was_packed(flat: Path, tmp_path: Path) -> None:
    section = DataSection(root=str(flat))
    open_manifest(section, lambda manifest, file: check_images(manifest, file, Quiet(), workers=0))
    for number in range(9):
        shutil.copy(flat / "blue" / "blue_1.jpg", flat / "blue" / f"0_{number}.jpg")
    done = packed(flat, tmp_path / "shards")
    assert_same_images(open_data(DataSection(root=str(done.folder))).val, open_data(section).val)


def test_other_programs_read_images_with_their_labels(flat: Path, tmp_path: Path) -> None:
    done = packed(flat, tmp_path / "shards")
    source = open_split(DataSection(root=str(flat)), "all")[0]
    samples: dict[str, dict[str, bytes]] = {}
    for shard in done.shards:
        with tarfile.open(done.folder / shard.name) as tar:
            for member in tar:
                # as WebDataset splits a name
                key, ending = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", member.name).groups()
                assert ending not in samples.setdefault(key, {})
                samples[key][ending] = tar.extractfile(member).read()
    assert [set(sample) for sample in samples.values()] == [{"jpg", "cls"}] * len(source)
    assert [int(sample["cls"]) for sample in samples.values()] == source.labels.tolist()
    assert [sample["jpg"] for sample in samples.values()] == [source.encoded(index) for index in range(len(source))]


@pytest.mark.thorough
def test_a_training_ends_with_the_same_bits(image_folder: Path, shards: Path, tmp_path: Path) -> None:
    settings = ("train.epochs=1", "data.check=true")
    theirs = train_on(image_folder, tmp_path / "a", *settings)
    ours = train_on(shards, tmp_path / "b", *settings, "data.workers=2")
    expected, found = (load_file(folder / "best.safetensors") for folder in (theirs, ours))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    rows = [json.loads((folder / "metrics.jsonl").read_text()) for folder in (theirs, ours)]
    first, second = ({key: value for key, value in row.items() if not key.endswith("_s")} for row in rows)
    assert first == second
    origins = [load_record(folder / "best.safetensors").provenance["manifest"] for folder in (theirs, ours)]
    assert origins[0] == origins[1]
    assert (ours / "blue_0.jpg").read_bytes() == (image_folder / "val" / "blue" / "blue_0.jpg").read_bytes()


def test_a_run_begun_on_the_folder_goes_on_with_the_shards(image_folder: Path, shards: Path, tmp_path: Path) -> None:
    settings = [str(TINY), f"data.root={image_folder}", f"output.root={tmp_path}"]
    assert run("train", *settings, "train.epochs=1", "output.name=begun") == 0
    assert run("train", "--extend", tmp_path / "begun", f"data.root={shards}", "train.epochs=2") == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_evaluation_counts_the_same(workers: int, image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    victim = image_folder / "val" / "red" / "red_1.jpg"
    victim.write_bytes(victim.read_bytes()[:200])
    display = Notebook()
    shards = packed(image_folder, tmp_path / "shards", display=display).folder
    assert display.warnings == [
        "packed as it is, 1 image that cannot be read: val/red/red_1.jpg; training reads past and counts them, "
        "data.bad_files=quarantine leaves them out of the shards"
    ]
    found = []
    for root in (image_folder, shards):
        layer = parse_command_line([f"data.root={root}", f"data.workers={workers}", "evaluate.device=cpu"])
        result = evaluate(tiny_checkpoint, [layer])
        bad = [(name.removeprefix(f"{root}/"), reason) for name, reason in result.bad_files]
        found.append((result.accuracy, bad))
    assert found[0] == found[1]
    assert [name for name, _ in found[1][1]] == ["val/red/red_1.jpg"]


def test_unreadable_images_are_left_out_or_refused_where_that_is_asked_for(image_folder: Path, tmp_path: Path) -> None:
    victim = image_folder / "train" / "red" / "red_1.jpg"
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"red_1\.jpg: cannot be read, the file is empty; so it is with 1 image"):
        packed(image_folder, tmp_path / "shards", bad_files="error")
    assert not (tmp_path / "shards").exists()
    done = packed(image_folder, tmp_path / "shards", bad_files="quarantine")
    ours, theirs = (
        open_data(DataSection(root=str(root), bad_files="quarantine")) for root in (done.folder, image_folder)
    )
    assert_same_images(ours.train, theirs.train)
    assert ours.notes == ("left out of the shards, 1 image that cannot be read: train/red/red_1.jpg",)
    display = Notebook()
    packed(image_folder / "train", tmp_path / "flat", display=display, bad_files="quarantine")
    assert display.warnings == [
        "the shards keep the division by val_fraction=0.2; any other is made without the images left out, and holds "
        "out others than in the folder"
    ]
    for path in (image_folder / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"val: none of its 12 images can be read$"):
        packed(image_folder, tmp_path / "shards", bad_files="quarantine")


def test_what_was_not_looked_at_before_packing_is_looked_at_once(image_folder: Path, tmp_path: Path) -> None:
    looked = []

    def look(manifest, file):
        looked.append(int((~manifest.inspected).sum()))
        return check_images(manifest, file, Quiet(), workers=0)

    done = packed(image_folder, tmp_path / "shards", check=False)
    section = DataSection(root=str(done.folder))
    found = [open_manifest(section, look)[0].hash for _ in range(2)]
    found.append(open_manifest(DataSection(root=str(image_folder)), look)[0].hash)
    assert looked == [36, 0, 36]
    assert len(set(found)) == 1


def test_shards_are_packed_anew_into_other_shards(shards: Path, tmp_path: Path) -> None:
    done = packed(shards, tmp_path / "other", 1_000_000)
    assert len(done.shards) == 2
    assert_same_images(open_data(DataSection(root=str(done.folder))).val, open_data(DataSection(root=str(shards))).val)


def test_shards_may_move_and_their_index_may_be_named(shards: Path, tmp_path: Path) -> None:
    moved = shards.rename(tmp_path / "moved")
    assert len(open_data(DataSection(root=str(moved))).train) == 24
    assert len(open_data(DataSection(manifest=str(moved / INDEX))).train) == 24


def test_few_files_stay_open(image_folder: Path, tmp_path: Path) -> None:
    done = packed(image_folder, tmp_path / "shards", 1)
    assert len(done.shards) == 36
    _opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    source = open_data(DataSection(root=str(done.folder))).train
    assert [source.encoded(index) for index in range(24)] == [source.encoded(index) for index in range(24)]
    assert len(os.listdir("/proc/self/fd")) == before + 24
    _opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_command_says_what_it_did_and_what_to_type_next(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "test" / "red").mkdir(parents=True)
    output = tmp_path / "shards"
    arguments = ("pack", f"data.root={image_folder}", "data.fold=0", "--output", output)
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    size = sum(path.stat().st_size for path in output.glob("*.tar")) / 1e9
    assert printed.out == (
        f"{output}: 36 images of 3 classes in 2 shards, {size:.3f} GB\n"
        f"next: vitrail train tnt_s_imagenet data.root={output} data.fold=0\n"
        f"      vitrail check-data data.root={output} data.fold=0  # also verifies the shards\n"
    )
    assert printed.err == f"{image_folder}: left out test, beside train and val\n"
    assert run(*arguments) == 0
    assert "GB (replaced)\n" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["train-000000.tar", "val-000000.tar", INDEX]


def test_check_data_verifies_shards(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = ("check-data", f"data.root={shards}", "--output", tmp_path / "check")
    assert run(*check) == 0
    page = (tmp_path / "check" / "check.html").read_text()
    victim = shards / "val-000000.tar"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    capsys.readouterr()
    assert run(*check) == 1
    assert "val-000000.tar is not as it was packed, by its SHA-256" in capsys.readouterr().out
    assert page.count("data:image/") >= 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-512]),
            "has {} bytes, where vitrail-index.safetensors says {}",
        ),
        (lambda path: path.unlink(), "cannot be opened (No such file or directory)"),
    ],
    ids=["cut off", "missing"],
)
def test_a_shard_that_is_not_whole_is_found_at_once(
    damage: Callable[[Path], object], message: str, shards: Path
) -> None:
    victim = shards / "train-000001.tar"
    size = victim.stat().st_size
    damage(victim)
    with pytest.raises(DataError) as caught:
        open_data(DataSection(root=str(shards)))
    wrong = message.format(f"{size - 512:,}", f"{size:,}")
    assert str(caught.value) == f"{victim}: {wrong}; copy the shards again, or pack the folder anew"


def test_a_shard_that_vanishes_later_makes_unreadable_images(
    shards: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shards / "train-000000.tar").write_bytes(b"")
    (shards / "train-000001.tar").unlink()
    monkeypatch.setattr("vitrail.data.shards.Places.check_sizes", lambda *_: None)
    settings = [f"data.root={shards}", "data.workers=0", "evaluate.split=train"]
    result = evaluate(tiny_checkpoint, [parse_command_line(settings)])
    assert result.accuracy.n > 0
    assert {reason for _, reason in result.bad_files} == {
        "its shard train-000000.tar is cut off", "its shard train-000001.tar: No such file or directory",
    }  # fmt: skip


def changed(manifest: Path, **columns: np.ndarray) -> None:
    """Write an index with other columns."""
    index = load_manifest(manifest)
    for name, column in columns.items():
        object.__setattr__(index.packed, name, column)
    index.save(manifest)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("shard", np.full(36, 99, np.int32), "its column shard is out of range"),
        ("offset", np.full(36, 10**12), "its column offset is out of range"),
        ("offset", np.full(36, -1), "its column offset is out of range"),
        ("offset", np.zeros(35, np.int64), "its column offset does not fit"),
    ],
)
def test_a_damaged_index_is_refused(column: str, value: np.ndarray, reason: str, shards: Path) -> None:
    changed(shards / INDEX, **{column: value})
    with pytest.raises(DataError) as caught:
        open_data(DataSection(root=str(shards)))
    assert str(caught.value) == (
        f"{shards / INDEX}: is no manifest, or damaged ({reason}); make it anew with `vitrail pack data.root=FOLDER`"
    )


def test_a_list_without_shards_is_no_index(image_folder: Path, tmp_path: Path) -> None:
    open_manifest(DataSection(root=str(image_folder)))[0].save(tmp_path / "other" / INDEX)
    with pytest.raises(DataError, match="lists images in folders, not in shards; pack the folder anew"):
        open_data(DataSection(root=str(tmp_path / "other")))


def test_tar_files_without_an_index_are_refused(shards: Path) -> None:
    (shards / INDEX).unlink()
    with pytest.raises(DataError) as caught:
        open_data(DataSection(root=str(shards)))
    assert str(caught.value).startswith(f"data.root {shards}: holds tar files (train-000000.tar, ")
    assert str(caught.value).endswith(
        f") and no {INDEX}, so it cannot be told what is in them; unpack them into a folder for each class, which "
        "`vitrail pack` makes shards of"
    )


@pytest.mark.parametrize(
    ("settings", "split", "message"),
    [
        ({"val_split": None}, "val", "data.val_split is null, and the shards of {} were packed with val; drop it"),
        (
            {"train_split": "old"},
            "val",
            "data.train_split is old, and the shards of {} were packed with train; drop it",
        ),
        ({"manifest": "x"}, "val", "data.manifest x: {} holds shards, which have a list of their own; drop it"),
        ({}, "all", "evaluate.split all: {} is divided into splits; choose train or val"),
    ],
)
def test_settings_that_shards_cannot_follow_are_refused(settings: dict, split, message: str, shards: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        open_split(DataSection(root=str(shards), **settings), split)
    assert str(caught.value).startswith(message.format(shards))


def test_what_cannot_be_packed_is_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    output = tmp_path / "shards"
    packed(image_folder / "train", output)
    root = f"data.root={image_folder}"
    for tokens, message in (
        (
            ["data.name=digits", "--output", "x"],
            "data.name is digits, which has files of its own; set data.root or data.list to pack",
        ),
        (
            [root, "--output", image_folder / "x"],
            f"--output {image_folder / 'x'}: lies in data.root",
        ),
        ([root, "--output", other], f"{other}: holds other files, such as notes.txt, and is not replaced; free space"),
        (
            [root, "--output", output],
            f"{output}: holds shards of {image_folder / 'train'}, and is not replaced; choose",
        ),
        ([root, "--output", "x", "--shard-mb", "0"], "--shard-mb is 0; it must be at least 1"),
        (["data.root=/nowhere", "--output", "x"], "data.root /nowhere: no such folder"),
    ):
        assert run("pack", *tokens) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
    assert not Path("x").exists()


def test_an_image_that_changes_meanwhile_or_is_missing_stops_the_packing(image_folder: Path, tmp_path: Path) -> None:
    victim = image_folder / "train" / "red" / "red_1.jpg"
    packed(image_folder, tmp_path / "shards")
    status, content = victim.stat(), victim.read_bytes()
    victim.write_bytes(content[:-3] + b"abc")
    os.utime(victim, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match="has changed since it was listed; `touch` it if that is meant to be, and pack"):
        packed(image_folder, tmp_path / "shards")
    victim.unlink()
    victim.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"cannot be read \(Input/output error\); mend or remove it, and pack"):
        packed(image_folder, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []
    assert len(open_data(DataSection(root=str(tmp_path / "shards"))).train) == 24


def test_a_full_disk_leaves_nothing(
    image_folder: Path, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    before = sorted(tmp_path.iterdir())
    open_manifest(DataSection(root=str(image_folder)))
    with largest_file(10_000), pytest.raises(CheckpointError) as caught:
        packed(image_folder, tmp_path / "shards", check=False)
    assert str(caught.value) == (
        f"{tmp_path / 'shards'}: cannot be written (File too large); free space or choose another folder with output="
    )
    assert sorted(tmp_path.iterdir()) == before


def pack_and_die(root: Path, output: Path, at: str) -> None:
    """Pack, and be killed before a rename, or while shards are written."""

    def audit(event: str, rest: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "os.rename" and output.name in Path(rest[0]).name:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    left = 2  # between the two
    vitrail.whole_folder.swap = lambda *rest: False  # as on NFS
    sys.addaudithook(audit)
    if at == "writing":
        vitrail.data.pack.WholeFolder.publish = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)  # pyright: ignore
    packed(root, output)


@pytest.mark.parametrize("at", ["writing", "replacing"])
def test_a_pack_that_is_killed_leaves_the_earlier_one_and_the_next_removes_the_rest(
    image_folder: Path, tmp_path: Path, at: str
) -> None:
    shards = tmp_path / "out" / "shards"
    packed(image_folder, shards)
    before = {path.name: path.read_bytes() for path in shards.iterdir()}
    process = SERVER.Process(target=pack_and_die, args=(image_folder, shards, at))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(list(shards.parent.iterdir())) == 2
    assert shards.exists() == (at == "writing")
    assert packed(image_folder, shards).replaced
    assert list(shards.parent.iterdir()) == [shards]
    assert {path.name for path in shards.iterdir()} == before.keys()


def test_ctrl_c_leaves_nothing(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*steps: int, **values: str) -> None:
        if values:
            assert [*tmp_path.glob(".shards.*.tmp/*.tar")]
            raise KeyboardInterrupt

    monkeypatch.setattr("vitrail.data.pack.BETWEEN", 5)
    monkeypatch.setattr("vitrail.display.Terminal.advance", stop)
    before = sorted(tmp_path.iterdir())
    assert run("pack", f"data.root={image_folder}", "--output", tmp_path / "shards") == 130
    assert capsys.readouterr().err == "stopped\n"
    assert sorted(tmp_path.iterdir()) == before
