"""What is known of images is kept, only what changed is read again, and nothing false is taken from a file."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.sections import DataSection
from vitrail.data.audit import scan as checking
from vitrail.data.audit.findings import compute_cut_away, find_alarms, find_problems, mark_held_out
from vitrail.data.audit.inspect_file import FORMATS, RULES, Finding, hash_picture, inspect
from vitrail.data.audit.near_duplicates import find_equal, find_near_pairs
from vitrail.data.audit.scan import check_images
from vitrail.data.manifest import Manifest, load_manifest, locate_cache, open_shards
from vitrail.data.opening import open_data, open_manifest, open_split
from vitrail.data.pack import pack
from vitrail.data.paths import Paths
from vitrail.data.shards import INDEX
from vitrail.display import Quiet
from vitrail.errors import ConfigError, DataError
from vitrail.images.decoding import decode
from vitrail.images.formats import READ
from vitrail.images.pixels import PixelFormat, UnreadableImage
from vitrail.images.preprocess import Preprocess

SIZE = Preprocess(size=(32, 32), crop=1.0)


class Steps(Quiet):
    """A display that counts the images that are looked at, and keeps warnings."""

    def __init__(self) -> None:
        self.looked, self.warnings = 0, []

    def advance(self, steps: int = 1, **values: str) -> None:
        self.looked += steps

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def scene(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Return a picture of its own, with structure."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with two classes of six training and three validation images, all different."""
    number = 0
    for part, count in (("train", 6), ("val", 3)):
        for name in ("ant", "bee"):
            (tmp_path / "set" / part / name).mkdir(parents=True)
            for index in range(count):
                scene(number).save(tmp_path / "set" / part / name / f"{index}.png")
                number += 1
    return tmp_path / "set"


def checked(root: Path, display: Steps | None = None, **settings) -> Manifest:
    display = display or Steps()
    section = DataSection(root=str(root), **settings)
    return open_manifest(section, lambda manifest, file: check_images(manifest, file, display, workers=0))[0]


def problems(manifest: Manifest, **settings) -> list[tuple[str, str]]:
    found = find_problems(manifest, mark_held_out(manifest, 0), SIZE, **settings)
    return [(problem.severity, problem.what) for problem in found.problems]


def test_only_what_changed_is_looked_at_again(root: Path) -> None:
    first = Steps()
    before = checked(root, first)
    assert first.looked == len(before) == 18
    again = Steps()
    assert checked(root, again).hash == before.hash
    assert again.looked == 0
    scene(99).save(root / "train" / "ant" / "0.png")
    scene(98).save(root / "train" / "ant" / "new.png")
    (root / "train" / "bee" / "5.png").unlink()
    changed = Steps()
    after = checked(root, changed)
    assert changed.looked == 2
    assert after.hash != before.hash
    assert sorted(after.names()) == sorted(os.fsencode(path.relative_to(root)) for path in root.rglob("*.png"))
    expected = open_manifest(DataSection(root=str(root), manifest=str(root.parent / "fresh")), None)[0]
    fresh = check_images(expected, root.parent / "fresh", Steps(), workers=0)
    for column in ("content", "picture", "width", "findings", "label", "part"):
        assert np.array_equal(getattr(after, column), getattr(fresh, column)), column


def test_a_check_that_is_stopped_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "BATCH", 4)

    class Stopping(Steps):
        def advance(self, steps: int = 1, **values: str) -> None:
            super().advance(steps)
            if self.looked == 8:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(root, Stopping())
    rest = Steps()
    assert checked(root, rest).inspected.all()
    assert rest.looked == 10


def test_workers_find_what_one_process_finds(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "FEW", 0)
    section = DataSection(root=str(root))
    manifest = open_manifest(section)[0]
    alone = check_images(manifest, root.parent / "a", Quiet(), workers=0)
    together = check_images(manifest, root.parent / "b", Quiet(), workers=2)
    assert (root.parent / "a").read_bytes() == (root.parent / "b").read_bytes()
    assert alone.hash == together.hash


def test_a_manifest_file_is_taken_as_it_is_without_a_root(root: Path) -> None:
    file = root.parent / "set.manifest"
    checked(root, manifest=str(file))
    scene(97).save(root / "train" / "ant" / "later.png")
    data = open_data(DataSection(manifest=str(file)))
    assert (len(data.train), len(data.val)) == (12, 6)
    assert data.train.name(0) == str(root / "train" / "ant" / "0.png")
    assert len(open_data(DataSection(root=str(root), manifest=str(file))).train) == 13


def test_unreadable_images_are_quarantined(root: Path) -> None:
    victim = root / "train" / "bee" / "2.png"
    victim.write_bytes(victim.read_bytes()[:100])
    manifest = checked(root)
    assert manifest.unreadable.sum() == 1
    assert [problem.what for problem in find_alarms(manifest, mark_held_out(manifest, 0))] == [
        f"1 image cannot be read: {manifest.reasons[0]}"
    ]
    data = open_data(DataSection(root=str(root), bad_files="quarantine"))
    assert len(data.train) == 11
    assert str(victim) not in [data.train.name(index) for index in range(11)]
    assert any("left out 1 image that cannot be read, the first is train/bee/2.png" in note for note in data.notes)
    assert len(open_data(DataSection(root=str(root))).train) == 12


def test_a_part_without_a_readable_image_is_refused(root: Path) -> None:
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"")
    checked(root)
    with pytest.raises(DataError, match=r"val: none of its 6 images can be read$"):
        open_data(DataSection(root=str(root), bad_files="quarantine"))


def damaged(**changes) -> dict[str, np.ndarray]:
    n = 2
    columns = {
        "text": np.frombuffer(b"ab", np.uint8), "ends": np.array([1, 2]), "part": np.zeros(n, np.uint8),
        "label": np.zeros(n, np.int32), "bytes": np.zeros(n, np.int64), "mtime_ns": np.zeros(n, np.int64),
        "fold": np.zeros(n, np.int16), "inspected": np.zeros(n, bool), "findings": np.zeros(n, np.uint16),
        "reason": np.full(n, -1, np.int32), "format": np.zeros(n, np.uint8), "width": np.zeros(n, np.int32),
        "height": np.zeros(n, np.int32), "content": np.zeros((n, 2), np.uint64), "picture": np.zeros(n, np.uint64),
    }  # fmt: skip
    return {**columns, **changes}


ABOUT = (
    '{"format": 1, "root": "2f", "folders": ["", ""], "classes": ["x"], "notes": [], "division": "", "reasons": [], '
    f'"formats": {str(list(FORMATS)).replace(chr(39), chr(34))}}}'
)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (damaged(ends=np.array([1, 3])), "its names overlap"),
        (damaged(ends=np.array([2, 1])), "its names overlap"),
        (damaged(label=np.array([0, 1], np.int32)), "its column label is out of range"),
        (damaged(reason=np.array([0, -1], np.int32)), "its column reason is out of range"),
        (damaged(part=np.array([0, 2], np.uint8)), "its column part is out of range"),
        (damaged(width=np.zeros(3, np.int32)), "its column width does not fit"),
        (damaged(content=np.zeros(2, np.uint64)), "its column content does not fit"),
        (damaged(bytes=np.zeros(2, np.int32)), "its column bytes does not fit"),
        ({"text": np.zeros(1, np.uint8)}, ""),
    ],
    ids=str,
)
def test_a_manifest_whose_columns_contradict_each_other_is_refused(columns, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.manifest"
    path.write_bytes(safetensors.numpy.save(columns, {"vitrail-manifest": ABOUT}))
    with pytest.raises(DataError) as caught:
        load_manifest(path)
    assert str(caught.value).startswith(f"{path}: is no manifest, or damaged ({reason}")
    assert str(caught.value).endswith("; make it anew with `vitrail check-data data.root=FOLDER data.manifest=FILE`")


def test_a_whole_manifest_of_the_same_columns_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.manifest"
    path.write_bytes(safetensors.numpy.save(damaged(), {"vitrail-manifest": ABOUT}))
    assert [*load_manifest(path).names()] == [b"a", b"b"]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", safetensors.numpy.save(damaged()), safetensors.numpy.save(damaged(), {"vitrail-manifest": "{}"})],
    ids=["empty", "text", "no description", "empty description"],
)
def test_another_file_is_no_manifest(content: bytes, root: Path) -> None:
    path = root.parent / "other"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is no manifest, or damaged"):
        open_data(DataSection(root=str(root), manifest=str(path)))
    with pytest.raises(DataError, match="there is no such manifest"):
        open_data(DataSection(manifest=str(root.parent / "absent")))


def test_a_damaged_cache_is_made_anew(root: Path) -> None:
    checked(root)
    locate_cache(root, "train", "val").write_bytes(b"damaged")
    display = Steps()
    assert checked(root, display).inspected.all()
    assert display.looked == 18


def test_a_manifest_that_cannot_be_kept_is_a_warning(root: Path) -> None:
    blocked = root.parent / "file"
    blocked.write_text("")
    display = Steps()
    manifest = checked(root, display, manifest=str(blocked / "a.manifest"))
    assert manifest.inspected.all()
    assert len(display.warnings) == 1
    assert display.warnings[0].endswith("the images will be looked at again next time")


# Division


def flat(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (number % 250, 3, 3)).save(folder / name)
    return folder


def held(root: Path, **settings) -> set[str]:
    checked(root, **settings)
    data = open_data(DataSection(root=str(root), **settings))
    return {data.val.name(index).removeprefix(f"{root}/") for index in range(len(data.val))}


def test_added_files_move_no_image_to_the_other_side(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(20)])
    before = held(root)
    assert len(before) == 8
    flat(root, *[f"{c}/{i}.png" for c in "ab" for i in range(20, 40)])
    after = held(root)
    assert before < after
    assert {name[0]: 0 for name in after} == {"a": 0, "b": 0}
    assert sorted(name[0] for name in after) == ["a"] * 8 + ["b"] * 8


@pytest.mark.parametrize("settings", [{"check": False}, {"folds": 4}])
def test_a_division_is_kept_where_no_image_is_looked_at(settings: dict, tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(20)])
    section = DataSection(root=str(root), **settings)
    if "check" not in settings:
        checked(root)  # the folds divide anew what is known already

    def held_now() -> set[str]:
        data = open_data(section)
        return {data.val.name(index) for index in range(len(data.val))}

    before = held_now()
    flat(root, *[f"{c}/{i}.png" for c in "ab" for i in range(20, 60)])
    assert before < held_now()


def test_a_division_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(20)])
    (tmp_path / "file").write_text("")
    data = open_data(DataSection(root=str(root), manifest=str(tmp_path / "file" / "a.manifest")))
    (told,) = [note for note in data.notes if "are added" in note]
    assert told.endswith("; files that are added may change which images are held out")


def test_groups_stay_together_and_classes_keep_their_share(tmp_path: Path) -> None:
    names = [f"{c}/patient{p}_{i}.png" for c in "ab" for p in range(25) for i in range(4)]
    root = flat(tmp_path / "set", *names)
    chosen = held(root, group_regex="patient([0-9]+)")
    patients = {name.split("patient")[1].split("_")[0] for name in chosen}
    assert chosen == {name for name in names if name.split("patient")[1].split("_")[0] in patients}
    assert [sum(name.startswith(c) for name in chosen) for c in "ab"] == [20, 20]


def test_a_pattern_that_takes_for_ever_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrail.data.splits.SEARCH_S", 0.2)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / f"{'x' * 60}{number}.png").write_bytes(b"")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(
        ConfigError,
        match=r"^data.group_regex '\(x\+\)\+y': takes more than 0.201 s to look for groups in 6 names; write it",
    ):
        open_data(DataSection(root=str(tmp_path), group_regex="(x+)+y", check=False))
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_division_far_from_what_was_asked_for_is_told(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{place}_{i}.png" for c in "ab" for place in "xy" for i in range(4)])
    assert open_data(DataSection(root=str(root), group_regex="x|y")).notes == (
        "held out 8 of 16 images, 20% of each class, x|y kept together, for validation; 50% of all, as groups and "
        "single images are not cut",
    )


def test_a_part_to_validate_with_is_not_divided(root: Path, tmp_path: Path) -> None:
    for settings, told in (
        ({"folds": 5, "fold": 1}, "data.folds=5 data.fold=1"),
        ({"group_regex": "x"}, "data.group_regex=x"),
        ({"val_fraction": 0.1, "bad_files": "quarantine"}, "data.val_fraction=0.1"),
    ):
        section = DataSection(root=str(root), **settings)
        message = (
            f"{told}: there is a part to validate with, {root / 'val'}, so that nothing is divided; set "
            "data.val_split=null to divide the training images, or drop it"
        )
        for opener in (open_data, open_manifest):
            with pytest.raises(ConfigError) as caught:
                opener(section)
            assert str(caught.value) == message
        source, notes = open_split(section, "val")
        assert len(source) == 6
        assert notes[-1] == f"{root / 'val'}: stands as it is, {told} divides nothing"
        divided = open_data(DataSection(root=str(root / "train"), val_split=None, folds=2))
        assert divided.is_divided


def test_the_manifest_of_other_images_is_not_replaced(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "m"
    checked(root, manifest=str(file))
    other = flat(tmp_path / "other", *[f"{c}/{i}.jpg" for c in "ab" for i in range(4)])
    before = file.read_bytes()
    with pytest.raises(DataError) as caught:
        checked(other, manifest=str(file))
    assert str(caught.value) == (
        f"data.manifest {file}: lists 18 images of {root}, none of which is in {other}; name another file for these, "
        "or delete it"
    )
    assert file.read_bytes() == before
    moved = root.rename(tmp_path / "moved")
    assert checked(moved, manifest=str(file)).root == moved


def test_the_index_of_shards_is_not_written_over(root: Path, tmp_path: Path) -> None:
    index = pack(DataSection(root=str(root), workers=0), tmp_path / "shards", 10**6, Quiet()).folder / INDEX
    before = index.read_bytes()
    with pytest.raises(DataError) as caught:
        checked(root, manifest=str(index))
    assert str(caught.value) == (
        f"data.manifest {index}: is the index of shards, which nothing else can stand in; name another file, or read "
        f"the shards with data.root={index.parent}"
    )
    assert index.read_bytes() == before
    with pytest.raises(ConfigError, match=r"so that nothing is divided; pack the training folder alone to divide the"):
        open_data(DataSection(root=str(index.parent), folds=3))


def test_what_does_not_divide_is_shared_out_over_the_folds(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "abc" for i in range(7)])
    assert [len(held(root, folds=3, fold=fold)) for fold in range(3)] == [7, 7, 7]
    with pytest.raises(DataError) as caught:
        held(root, folds=13, fold=12)
    assert str(caught.value) == (
        f"{root}: fold 12 of 13 has none of the 21 images; lower data.folds, or let data.group_regex find more groups"
    )


def test_quarantined_images_are_left_out_of_all_and_no_error_of_the_check(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(6)])
    (root / "a" / "1.png").write_bytes(b"")
    manifest = checked(root)
    source, notes = open_split(DataSection(root=str(root), bad_files="quarantine"), "all")
    assert len(source) == 11
    assert notes[-1] == f"{root}: left out 1 image that cannot be read, the first is a/1.png"
    found = find_problems(manifest, mark_held_out(manifest, 0), SIZE, quarantine=True)
    assert not found.has_errors
    assert ("note", "they are left out") in [(problem.severity, problem.advice) for problem in found.problems]


def test_folds_are_disjoint_and_equal(tmp_path: Path) -> None:
    names = [f"{c}/{i}.png" for c in "abc" for i in range(10)]
    root = flat(tmp_path / "set", *names)
    parts = [held(root, folds=5, fold=fold) for fold in range(5)]
    assert sorted(name for part in parts for name in part) == sorted(names)
    assert [sorted(name[0] for name in part) for part in parts] == [["a", "a", "b", "b", "c", "c"]] * 5


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(", "data.group_regex '(': is no regular expression (missing ), unterminated subpattern at position 0)"),
        (
            "q",
            "data.group_regex 'q': does not fit {}/a/0.png; it must find the group in every name below data.root; "
            "data.group_regex=null drops it",
        ),
    ],
)
def test_a_regex_that_does_not_fit_is_refused(regex: str, message: str, tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(4)])
    with pytest.raises(ConfigError) as caught:
        open_data(DataSection(root=str(root), group_regex=regex))
    assert str(caught.value) == message.format(root)


def test_a_manifest_divided_in_another_way_is_refused(tmp_path: Path) -> None:
    root = flat(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(10)])
    checked(root, manifest=str(tmp_path / "m"))
    with pytest.raises(ConfigError) as caught:
        open_data(DataSection(manifest=str(tmp_path / "m"), folds=5))
    assert str(caught.value) == (
        "data.manifest: its images are divided by val_fraction=0.2, the settings say folds=5; give data.root or "
        "data.list too, to divide them anew"
    )


# Findings


def test_each_oddity_of_a_file_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "train" / "ant"
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(50).save(folder / "turned.jpg", exif=exif)
    scene(51).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16).save(folder / "deep.png")
    scene(52).save(folder / "animated.gif", save_all=True, append_images=[scene(53)])
    scene(54).convert("RGBA").save(folder / "alpha.png")
    scene(55).convert("L").save(folder / "gray.jpg")
    scene(56).save(folder / "named.png", format="JPEG")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    scene(57, (90, 70)).save(folder / "huge.png")
    monkeypatch.setattr("vitrail.data.audit.inspect_file.HUGE_PIXELS", 6000)
    manifest = checked(root)
    found = {Path(manifest.name(index)).name: Finding(manifest.findings[index]) for index in range(len(manifest))}
    assert {name: flags for name, flags in found.items() if flags} == {
        "turned.jpg": Finding.TURNED,
        "cmyk.jpg": Finding.CMYK,
        "deep.png": Finding.DEEP | Finding.GRAY,
        "animated.gif": Finding.ANIMATED,
        "alpha.png": Finding.ALPHA,
        "gray.jpg": Finding.GRAY,
        "named.png": Finding.WRONG_ENDING,
        "empty.jpg": Finding.UNREADABLE | Finding.EMPTY,
        "text.jpg": Finding.UNREADABLE,
        "huge.png": Finding.HUGE,
    }
    said = problems(manifest)
    assert ("error", "1 image cannot be read: the file is empty") in said
    assert ("error", f"1 image cannot be read: not an image of a known format; read are {READ}") in said
    for what in ("is to be turned by EXIF", "has the ending of another format", "has over 50 million pixels"):
        assert ("warning", f"1 image {what}") in said
    for what in ("is CMYK", "has more than 8 bits a channel", "has several frames", "has transparency"):
        assert ("note", f"1 image {what}") in said
    assert ("note", "2 images are gray") in said


def test_turned_images_are_counted_in_every_format_and_told_as_they_are_read(root: Path) -> None:
    folder = root / "train" / "ant"
    for number, form in enumerate(("jpg", "png", "webp", "avif", "tif")):
        exif = Image.Exif()  # a new one, since Pillow takes the orientation out of it for AVIF
        exif[0x0112] = 6
        scene(60 + number).save(folder / f"turned.{form}", exif=exif)
    behind = (folder / "turned.png").read_bytes()
    at = behind.index(b"eXIf") - 4
    size = 12 + int.from_bytes(behind[at : at + 4], "big")
    moved = behind[:at] + behind[at + size : -12] + behind[at : at + size] + behind[-12:]
    (folder / "turned_behind.png").write_bytes(moved)
    manifest = checked(root)
    found = {Path(manifest.name(index)).name for index in np.flatnonzero(manifest.findings & Finding.TURNED)}
    assert found == {f"turned.{form}" for form in ("jpg", "png", "webp", "avif", "tif")} | {"turned_behind.png"}
    for choice, severity in (("ignore", "warning"), ("apply", "note")):
        told = find_problems(manifest, mark_held_out(manifest, 0), replace(SIZE, exif=choice)).problems
        said = {problem.what: (problem.severity, problem.advice) for problem in told}
        assert said["5 images are to be turned by EXIF"][0] == severity
        assert said["1 image is stored turned, in a TIFF"][0] == "note"
        unturned = {name: decode((folder / name).read_bytes()).shape for name in found}
        turned = {name: decode((folder / name).read_bytes(), PixelFormat(exif="apply")).shape for name in found}
        assert {name for name in found if unturned[name] != turned[name]} == found - {"turned.tif"}


def test_jpegs_that_end_too_early_are_told(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, options in enumerate(({}, {"progressive": True}, {"restart_marker_rows": 1})):
        path = root / "train" / "ant" / f"whole{number}.jpg"
        scene(70 + number).save(path, **options)
        cut = path.read_bytes()[: -path.stat().st_size // 3] + b"\xff\xd9"
        path.with_name(f"early{number}.jpg").write_bytes(cut)
    manifest = checked(root)
    capfd.readouterr()
    found = {Path(manifest.name(index)).name for index in np.flatnonzero(manifest.findings & Finding.ENDS_EARLY)}
    assert found == {"early0.jpg", "early1.jpg", "early2.jpg"}
    assert ("warning", "3 images are JPEGs that end too early") in problems(manifest)


def test_what_was_found_by_other_rules_is_looked_at_again(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "m"
    before = checked(root, manifest=str(file))
    replace(before, rules=1).save(file)
    assert load_manifest(file).rules == 1
    again = Steps()
    after = checked(root, again, manifest=str(file))
    assert again.looked == len(before)
    assert after.rules == load_manifest(file).rules == RULES
    again = Steps()
    checked(root, again, manifest=str(file))
    assert again.looked == 0
    pack(DataSection(root=str(root)), tmp_path / "shards", 10**6, Quiet())
    index = tmp_path / "shards" / INDEX
    index.write_bytes(replace(load_manifest(index), rules=1).encode())
    assert open_shards(tmp_path / "shards", None).inspected.sum() == 0


def test_copies_are_found_on_both_sides_and_in_other_classes(root: Path) -> None:
    (root / "val" / "ant" / "copy.png").write_bytes((root / "train" / "ant" / "0.png").read_bytes())
    (root / "train" / "bee" / "torn.png").write_bytes((root / "train" / "ant" / "1.png").read_bytes())
    scene(2).resize((50, 38)).save(root / "val" / "ant" / "smaller.jpg", quality=80)
    manifest = checked(root)
    said = problems(manifest)
    assert said[:3] == [
        ("error", "1 group of images on both sides of training and validation are the same file, byte for byte"),
        ("error", "1 group of images in different classes are the same file, byte for byte"),
        (
            "warning",
            "1 pair of images on both sides of training and validation are versions of one picture, it seems",
        ),
    ]
    (leak,) = [
        problem for problem in find_problems(manifest, mark_held_out(manifest, 0), SIZE).problems
        if "versions" in problem.what
    ]  # fmt: skip
    assert sorted(manifest.name(index) for index in leak.images[0]) == ["train/ant/2.png", "val/ant/smaller.jpg"]
    assert len(find_alarms(manifest, mark_held_out(manifest, 0))) == 2
    (root / "train" / "ant" / "5.png").write_bytes(b"")
    manifest = checked(root)
    held_out = mark_held_out(manifest, 0)
    assert len(find_alarms(manifest, held_out)) == 3
    assert len(find_alarms(manifest, held_out, quarantine=True)) == 2


def test_a_clean_set_has_no_problem(root: Path) -> None:
    assert problems(checked(root)) == []


def test_classes_are_judged(tmp_path: Path) -> None:
    names = [f"train/{c}/{i}.png" for c in range(12) for i in range(1 if c == 3 else 30 if c == 1 else 2)]
    root = flat(tmp_path / "set", *names, *[f"val/{c}/{i}.png" for c in range(12) for i in range(2)])
    said = problems(checked(root), near=False)
    assert ("warning", "30 times as many training images of '1' (30) as of '3' (1)") in said
    assert ("warning", "12 classes are in the order of text: index 2 is 10, and 2 in natural order") in said
    assert ("note", f"{len(names) + 24} images are smaller than the model's 32 x 32 pixels") in said


def test_what_the_centre_crop_cuts_away_is_its_share_of_the_area(root: Path) -> None:
    scene(60, (200, 40)).save(root / "train" / "ant" / "wide.png")
    manifest = checked(root)
    lost = dict(zip(manifest.names(), compute_cut_away(manifest, Preprocess(size=(32, 32), crop=1.0)), strict=True))
    assert lost[b"train/ant/wide.png"] == pytest.approx(1 - 40 / 200)
    assert lost[b"train/ant/0.png"] == pytest.approx(1 - 48 / 64)
    view = Preprocess(size=(32, 32), crop=0.5)
    assert dict(zip(manifest.names(), compute_cut_away(manifest, view), strict=True))[
        b"train/ant/0.png"
    ] == pytest.approx(1 - (24 * 24) / (64 * 48))
    for resize in ("squash", "letterbox"):
        assert not compute_cut_away(manifest, Preprocess(size=(32, 32), resize=resize)).any()


def test_folders_that_contradict_each_other_are_findings_and_forbid_training(root: Path) -> None:
    (root / "val" / "ant").rename(root / "val" / "wasp")
    manifest, structure = open_manifest(DataSection(root=str(root)))
    assert len(structure) == 1
    assert manifest.classes == ("ant", "bee", "wasp")
    found = find_problems(manifest, mark_held_out(manifest, 0), SIZE, structure)
    assert found.has_errors
    assert "val/ has other classes than train/" in found.problems[0].what


# Copies among many


@given(st.lists(st.integers(0, 5), max_size=30))
def test_equal_keys_are_grouped(keys: list[int]) -> None:
    groups = find_equal(np.array(keys, dtype=np.uint64))
    expected = [[i for i, key in enumerate(keys) if key == wanted] for wanted in sorted(set(keys))]
    assert [group.tolist() for group in groups] == [group for group in expected if len(group) > 1]


def test_near_pairs_are_all_pairs_within_four_bits() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(1, 2**63, 60, dtype=np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, k, replace=False)) for k in range(6)], np.uint64)
    hashes = np.concatenate([base, base[:6] ^ flips, [0, 0]]).astype(np.uint64)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = [(i, j) for i in range(66) for j in range(i + 1, 66) if apart[i, j] <= 4]
    pairs, crowded = find_near_pairs(hashes)
    assert sorted(map(tuple, pairs.tolist())) == expected
    assert len(expected) >= 4
    assert crowded == 0


def test_versions_of_a_picture_are_near_and_others_far(tmp_path: Path) -> None:
    originals = [scene(number, (120, 90)) for number in range(30)]
    hashes = []
    for number, image in enumerate(originals):
        path = tmp_path / f"{number}.jpg"
        image.resize((60, 45)).save(path, quality=60)
        hashes.append((hash_picture(decode(path.read_bytes())), inspect("x.png", png(image)).picture))
    near = [(small ^ whole).bit_count() for small, whole in hashes]
    far = [(hashes[i][0] ^ hashes[j][1]).bit_count() for i in range(30) for j in range(i)]
    assert max(near) <= 4
    assert min(far) > 8
    assert inspect("x.png", png(Image.new("RGB", (50, 50), (9, 9, 9)))).picture == 0


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_paths_are_as_a_list(tmp_path: Path) -> None:
    names = [b"a", b"", b"caf\xe9/1.png", b"long name"]
    paths = Paths.of(iter(names))
    assert [*paths] == names
    assert [*paths.take(np.array([True, False, True, False]))] == [b"a", b"caf\xe9/1.png"]
    assert [*Paths.of([])] == []


def test_a_check_takes_no_random_number(root: Path) -> None:
    before = torch.get_rng_state()
    checked(root)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_header_that_cannot_be_read_does_not_decide(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    scene(1).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    entry = data.index((258).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    data[entry + 4 : entry + 8] = (0).to_bytes(4, "little")  # bits of no channel
    found = inspect("x.tif", bytes(data))
    try:
        decode(bytes(data))
        is_readable = True
    except UnreadableImage:
        is_readable = False
    assert (found.findings & Finding.UNREADABLE == 0) == is_readable
