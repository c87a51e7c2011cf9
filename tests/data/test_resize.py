"""A resized folder has the same images with fewer pixels, says so, and is whole or not there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import get_sampling

from support.runs import TINY
from vitrail.cli.app import main
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.config.sections import DataSection
from vitrail.data import resize as resizing
from vitrail.data.folders import MARK
from vitrail.data.opening import open_data, open_split
from vitrail.data.pack import pack
from vitrail.data.resize import Resized, resize_data
from vitrail.display import Quiet
from vitrail.distributed.processes import processes
from vitrail.errors import CheckpointError, DataError, Interrupted
from vitrail.evaluation.evaluate import evaluate
from vitrail.images.decoding import decode, read_header
from vitrail.images.pixels import PixelFormat
from vitrail.training.run.stop import Stop
from vitrail.training.setup import build_job

SIDE = 24


class Notebook(Quiet):
    """A display that remembers, and can be stopped after some images."""

    def __init__(self, most: int = 10**9) -> None:
        self.notes, self.warnings, self.left = [], [], most

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def advance(self, steps: int = 1, **values: str) -> None:
        self.left -= steps
        if self.left <= 0:
            raise KeyboardInterrupt


def resized(root: Path, output: Path, side: int = SIDE, display: Quiet | None = None, **settings) -> Resized:
    section = DataSection(root=str(root), **{"workers": 0, **settings})
    return resize_data(section, output, side, 95, display or Quiet())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["resize-data", *map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def scene(size: tuple[int, int] = (60, 40)) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_each_image_has_its_name_its_format_and_fewer_pixels(image_folder: Path, tmp_path: Path) -> None:
    done = resized(image_folder, tmp_path / "small")
    assert (done.resized, done.copied, done.bad) == (36, {}, [])
    before, after = contents(image_folder), contents(tmp_path / "small")
    mark = json.loads(after.pop(MARK))
    assert before.keys() == after.keys()
    assert (done.before, done.after) == (sum(map(len, before.values())), sum(map(len, after.values())))
    for name, data in after.items():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size, get_sampling(image)) == ("JPEG", (30, 24), 0)
        assert (image_folder / name).stat().st_mtime_ns == (tmp_path / "small" / name).stat().st_mtime_ns
    assert mark["changes"][0]["from"] == str(image_folder)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("ending", "options"), [
    ("jpg", {"quality": 95}), ("png", {}), ("webp", {"quality": 95}), ("webp", {"lossless": True}), ("bmp", {}),
    ("ppm", {}),
])  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_an_antialiased_filter(ending: str, options: dict, mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    image = scene().convert(mode)
    image.save(folder / f"x.{ending}", **options)
    stored = (folder / f"x.{ending}").read_bytes()
    assert resized(tmp_path / "set", tmp_path / "small").resized == 1
    data = (tmp_path / "small" / "a" / f"x.{ending}").read_bytes()
    before, after = read_header(stored), read_header(data)
    assert (after.format, after.mode) == (before.format, before.mode)
    expected = image.convert("RGB").resize((36, 24), Image.Resampling.LANCZOS)
    difference = np.abs(decode(data).permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).mean()
    assert difference <= (6 if "quality" in options else 0)


def test_orientation_and_colour_profile_stay(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in ("x.jpg", "x.webp"):
        scene().save(folder / name, exif=exif.tobytes(), icc_profile=profile)
    scene().save(folder / "first.jpg", "MPO", save_all=True, append_images=[scene((30, 20))], exif=exif.tobytes())
    resized(tmp_path / "set", tmp_path / "small")
    for name in ("x.jpg", "x.webp", "first.jpg"):
        data = (tmp_path / "small" / "a" / name).read_bytes()
        image = Image.open(io.BytesIO(data))
        assert dict(image.getexif()) == {0x0112: 6}, name
        assert image.size == (36, 24)
        assert image.info.get("icc_profile") == (None if name == "first.jpg" else profile)
        assert decode(data, PixelFormat(exif="apply")).shape == (3, 36, 24)


def test_what_is_small_or_odd_is_copied_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    scene((24, 90)).save(folder / "small.jpg")
    scene().convert("CMYK").save(folder / "cmyk.jpg")
    scene().save(folder / "frames.png", save_all=True, append_images=[scene((60, 40)).rotate(90)])
    scene().save(folder / "single.gif")
    scene().save(folder / "x.tif")
    scene().convert("RGBA").save(folder / "alpha.png")
    scene().convert("P").save(folder / "palette.png")
    Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 20).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene().save(folder / "turned.png", exif=exif.tobytes())
    done = resized(tmp_path / "set", tmp_path / "new")
    assert done.resized == 0
    assert done.copied == {
        "short side of at most 24": 1, "colours of mode CMYK": 1, "several frames": 1, "GIF is not resized": 1,
        "TIFF is not resized": 1, "transparency": 1, "colours of mode P": 1, "more than 8 bits": 1, "EXIF in PNG": 1,
    }  # fmt: skip
    after = contents(tmp_path / "new")
    del after[MARK]
    assert after == contents(tmp_path / "set")


def test_files_are_the_same_for_any_number_of_workers(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "BATCH", 5)
    alone = resized(image_folder, tmp_path / "a")
    together = resized(image_folder, tmp_path / "b", workers=2)
    assert contents(alone.folder) == contents(together.folder)


def test_what_is_stopped_goes_on_and_ends_the_same(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "BATCH", 5)
    (image_folder / "val" / "red" / "red_0.jpg").write_bytes(b"damaged")
    (image_folder / "train" / "blue" / "blue_3.jpg").write_bytes(b"damaged")
    scene((20, 20)).save(image_folder / "train" / "blue" / "blue_1.jpg")
    whole = resized(image_folder, tmp_path / "whole")
    partial = tmp_path / ".new.partial"
    with pytest.raises(Interrupted) as caught:
        resized(image_folder, tmp_path / "new", display=Notebook(10))
    assert str(caught.value) == f"stopped; the same command goes on with what is in {partial}"
    assert not (tmp_path / "new").exists()
    assert len(list(partial.rglob("*.jpg"))) == 9
    (partial / ".123.tmp").write_bytes(b"half")
    written = partial / "train" / "blue" / "blue_0.jpg"
    number = written.stat().st_ino
    (image_folder / "train" / "blue" / "blue_2.jpg").touch()
    display = Notebook()
    done = resized(image_folder, tmp_path / "new", display=display)
    assert display.notes == [f"goes on with what is in {partial}"]
    assert (done.resized, done.copied, done.bad, done.before, done.after) == (
        whole.resized, whole.copied, whole.bad, whole.before, whole.after,
    )  # fmt: skip
    assert contents(done.folder) == contents(whole.folder)
    assert (tmp_path / "new" / "train" / "blue" / "blue_0.jpg").stat().st_ino == number


def test_what_was_begun_with_other_settings_begins_anew(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        resized(image_folder, tmp_path / "new", 20, Notebook(10))
    (image_folder / "train" / "red" / "red_0.jpg").unlink()
    display = Notebook()
    resized(image_folder, tmp_path / "new", display=display)
    assert display.notes == [f"{tmp_path / '.new.partial'}: was begun for other images or settings, and is removed"]
    assert len(list((tmp_path / "new").rglob("*.jpg"))) == 35


def test_unreadable_images_are_copied_left_out_or_refused(image_folder: Path, tmp_path: Path) -> None:
    victim = image_folder / "train" / "red" / "red_1.jpg"
    victim.write_bytes(victim.read_bytes()[:100])
    done = resized(image_folder, tmp_path / "skip")
    assert [name for _, name, _ in done.bad] == ["train/red/red_1.jpg"]
    assert (tmp_path / "skip" / "train" / "red" / "red_1.jpg").read_bytes() == victim.read_bytes()
    resized(image_folder, tmp_path / "quarantine", bad_files="quarantine")
    assert len(list((tmp_path / "quarantine").rglob("*.jpg"))) == 35
    with pytest.raises(
        DataError, match=r"red_1\.jpg: cannot be read, .*; repair or remove it, or set data\.bad_files=skip"
    ):
        resized(image_folder, tmp_path / "error", bad_files="error")
    assert not (tmp_path / "error").exists()
    victim.unlink()
    victim.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"red_1\.jpg: cannot be copied \(Input/output error\); remove it, or leave"):
        resized(image_folder, tmp_path / "missing")


def test_what_became_unreadable_meanwhile_is_not_taken_from_before(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resizing, "BATCH", 5)
    with pytest.raises(Interrupted):
        resized(image_folder, tmp_path / "new", display=Notebook(10))
    victim = image_folder / "train" / "blue" / "blue_0.jpg"
    victim.write_bytes(bytes(victim.stat().st_size))
    display = Notebook()
    done = resized(image_folder, tmp_path / "new", display=display, bad_files="quarantine")
    assert display.notes == [f"goes on with what is in {tmp_path / '.new.partial'}"]
    assert [name for _, name, _ in done.bad] == ["train/blue/blue_0.jpg"]
    assert not (tmp_path / "new" / "train" / "blue" / "blue_0.jpg").exists()
    assert len(list((tmp_path / "new").rglob("*.jpg"))) == 35


def test_changed_pixels_are_told_wherever_they_are_used(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    resized(image_folder, tmp_path / "30", 30)
    resized(tmp_path / "30", tmp_path / "24")
    told = (
        f"pixels were changed: resized to a short side of 30 (Lanczos, quality 95) by `vitrail resize-data` from "
        f"{image_folder}, then resized to a short side of 24 (Lanczos, quality 95) by `vitrail resize-data` from "
        f"{tmp_path / '30'}"
    )
    shards = pack(DataSection(root=str(tmp_path / "24")), tmp_path / "shards", 10**6, Quiet()).folder
    for root in (tmp_path / "24", tmp_path / "24" / "val", shards):
        assert open_data(DataSection(root=str(root))).notes[0] == told
    assert open_split(DataSection(root=str(tmp_path / "24")), "val")[1] == (told,)
    display = Notebook()
    settings = [f"data.root={shards}", "data.workers=0", "evaluate.device=cpu"]
    evaluate(tiny_checkpoint, [parse_command_line(settings)], display=display)
    assert display.notes == [told]
    tiny = read_yaml(TINY)
    config = resolve(TrainConfig, [tiny, parse_command_line([f"data.root={shards}"])]).config
    with processes("float32", "cpu") as accelerator, Stop() as stop:
        job, _ = build_job(config, accelerator, "float32", Quiet(), stop)
    assert job.origin["pixels"] == told


def test_a_damaged_mark_is_refused(image_folder: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"changes": [{}]}', '{"changes": 3}'):
        (image_folder / MARK).write_text(text)
        with pytest.raises(DataError) as caught:
            open_data(DataSection(root=str(image_folder)))
        assert str(caught.value) == (
            f"{image_folder / MARK}: is damaged, and it cannot be told how the images were changed; resize them anew"
        )


def test_the_command_says_what_it_did_and_what_to_type_next(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (image_folder / "val" / "red" / "red_1.jpg").write_bytes(b"")
    (image_folder / "test").mkdir()
    (image_folder / "train" / "empty").mkdir()
    output = tmp_path / "new"
    assert run(f"data.root={image_folder}", "--output", output, "--short-side", SIDE, "data.workers=0") == 0
    printed = capsys.readouterr()
    assert "became 0.000 GB" in printed.out
    assert printed.out.endswith(
        "1 unreadable image was copied:\n  val/red/red_1.jpg: the file is empty\n"
        f"next: vitrail train tnt_s_imagenet data.root={output} data.workers=0\n"
        f"      vitrail pack data.root={output} --output SHARDS\n"
    )
    first, second = printed.err.splitlines()
    assert first == f"{image_folder}: left out test, beside train and val"
    assert second.startswith(
        f"warning: data.root {image_folder / 'train'}: 1 of 4 class folders have no images (empty)"
    )


def test_what_cannot_be_resized_is_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = pack(DataSection(root=str(image_folder)), tmp_path / "shards", 10**6, Quiet()).folder
    root, side = f"data.root={image_folder}", ("--short-side", SIDE)
    for tokens, message in (
        ([root, "--output", image_folder / "x", *side], f"--output {image_folder / 'x'}: lies in data.root"),
        ([root, "--output", image_folder, *side], f"--output {image_folder}: lies in data.root"),
        ([root, "--output", shards, *side], f"{shards}: is there already, and is not replaced; choose another"),
        ([root, "data.folds=3", "--output", "x", *side], "data.folds is 3: has no meaning here; used are root, train_"),
        (
            [root, "data.list=x.csv", "--output", "x", *side],
            "data.list is x.csv: has no meaning here; used are root, train_split, val_split, channels, bits, workers, "
            "bad_files; resize the folder of its images by data.root, and give the list with the new data.root",
        ),
        (["data.name=digits", "--output", "x", *side], "data.name is digits: has no meaning here; used are root"),
        ([f"data.root={shards}", "--output", "x", *side], f"data.root {shards}: holds shards; resize the folder they"),
        ([root, "--output", "x", "--short-side", 0], "--short-side is 0; it must be at least 1"),
        ([root, "--output", "x", *side, "--quality", 101], "--quality is 101; it must be from 1 to 100"),
        (["data.root=/nowhere", "--output", "x", *side], "data.root /nowhere: no such folder"),
    ):
        assert run(*tokens) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
    assert not Path("x").exists()


def test_a_full_disk_is_one_line_and_what_is_there_is_gone_on_with(
    image_folder: Path, tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    scene((400, 300)).save(image_folder / "val" / "red" / "large.png")
    with largest_file(20_000), pytest.raises(CheckpointError) as caught:
        resized(image_folder, tmp_path / "new", 280)
    assert str(caught.value) == (
        f"{tmp_path / 'new'}: cannot be written (File too large); free space or choose another folder with output=; "
        "the same command goes on where it was"
    )
    assert not (tmp_path / "new").exists()
    assert resized(image_folder, tmp_path / "new", 280).resized == 1


def test_images_are_never_removed_by_what_is_begun_beside_them(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / ".new.partial"
    image_folder.rename(begun)
    (tmp_path / "link").symlink_to(begun)
    for root in (begun, begun / "train", tmp_path / "link"):
        before = contents(begun)
        assert run(f"data.root={root}", "--output", tmp_path / "new", "--short-side", SIDE) == 2
        assert (
            f"data.root {root}: lies where --output {tmp_path / 'new'} is begun, and would be removed; rename it"
            in (capsys.readouterr().err)
        )
        assert contents(begun) == before
    assert run(f"data.root={begun}", "--output", tmp_path / "link" / "x", "--short-side", SIDE) == 2
    assert f"--output {tmp_path / 'link' / 'x'}: lies in data.root {begun}" in capsys.readouterr().err
