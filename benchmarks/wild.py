"""What comes out of files as they are met in the wild, case by case, beside what is right.

    uv run python benchmarks/wild.py

The cases are those of ../shared/wild: images, weight files, lists and folders from public reports of bugs, of which
each once gave wrong numbers, a traceback or no answer. "Right" is computed here, from the true pixels and logits beside
the files or from what the command did.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cyclopts
import numpy as np
import torch
from decoders import count
from PIL import Image
from safetensors.torch import save_file
from side_by_side import publish

import vitrail
from vitrail.config.sections import DataSection
from vitrail.data.opening import open_split
from vitrail.data.sources import Source
from vitrail.images.decoding import check_picture, decode
from vitrail.images.pixels import PixelFormat, UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.server.cost import estimate_cost
from vitrail.server.decoders import QUICK_S

WILD = Path(__file__).parents[2] / "shared" / "wild"
TINY = {
    "model": "tnt_ti_patch16_224",
    "image_size": 32,
    "embed_dim": 24,
    "inner_dim": 8,
    "depth": 1,
    "num_heads": 2,
    "inner_num_heads": 2,
}
"""The model of the weight files."""
AS_SETTINGS = (
    f"weights.model={TINY['model']}",
    "weights.options={" + ", ".join(f"{key}: {value}" for key, value in TINY.items() if key != "model") + "}",
)
DAMAGED = 12_000
"""Images that both decoders read, in the formats that torchcodec reads."""
MADE = "the files are made by script after public reports; none is a public file"
TRACEBACK = "Traceback (most recent call last)"


class Row(NamedTuple):
    """One file, what came of it, and whether that is right."""

    name: str
    now: str
    right: bool


class Ran(NamedTuple):
    """What a command left."""

    status: int
    out: str
    said: str

    def message(self) -> str:
        """Return its error, or its warnings, as one line."""
        told = [line for line in self.said.splitlines() if re.match(r"(error|warning|note):", line)]
        text = TRACEBACK if TRACEBACK in self.said else "; ".join(told[:2])
        return f"status {self.status}: {text}" if text else f"status {self.status}"

    def refused(self) -> bool:
        """Say whether it ended with one line."""
        errors = [line for line in self.said.splitlines() if line.startswith("error:")]
        return self.status == 2 and len(errors) == 1 and TRACEBACK not in self.said


def vitrail_command(*words: object, seconds: float = 120) -> Ran:
    """Run the command line as a user does."""
    environment = os.environ | {"COLUMNS": "2000", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "vitrail", *map(str, words)]
    try:
        with tempfile.TemporaryDirectory() as place:  # for what a command writes beside
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=place)
    except subprocess.TimeoutExpired:
        return Ran(-1, "", f"error: waited for {seconds:.0f} s")
    return Ran(done.returncode, done.stdout, done.stderr)


def short(error: BaseException) -> str:
    """Return an error as one line, a refusal as its reason."""
    known = isinstance(error, (UnreadableImage, vitrail.errors.VitrailError))
    text = " ".join(str(error).split()).replace(str(WILD), "wild")
    return f"refused: {text}" if known else f"{type(error).__name__}: {text}"


def pixels_of(
    path: Path, truth: np.ndarray | None, levels: float, may_refuse: bool, step: float = 0.0
) -> Iterator[Row]:
    """Read an image at 8 and at 16 bits, and compare it with true values from 0 to `levels`, stored in such steps."""
    for bits in (8, 16):
        name, scale = f"{path.name}, {bits} bits", 2**bits - 1
        try:
            found = decode(path.read_bytes(), PixelFormat(3, bits)).to(torch.float64).permute(1, 2, 0).numpy()
        except Exception as error:
            yield Row(name, short(error), may_refuse and isinstance(error, UnreadableImage))
            continue
        if truth is None:
            yield Row(name, f"read, mean {found.mean() / scale:.3f} of 1", False)
            continue
        true = truth if truth.ndim == 3 else truth[:, :, None].repeat(3, 2)
        # the high byte of 16 bits is up to one level of 8 bits below the scaled value
        largest = np.abs(found - true / levels * scale).max() / scale
        yield Row(name, f"read, at most {largest:.4f} of 1 from the truth", bool(largest <= step / 2 + 1 / 254))


def planar() -> Iterator[Row]:
    folder = WILD / "01-tiff-16bit-planar"
    truth = np.load(folder / "truth.npy")
    for name in ("rgb-little", "rgb-big", "zlib", "rgba", "cmyk"):
        yield from pixels_of(folder / f"{name}.tif", truth, 65535, False)


def min_is_white() -> Iterator[Row]:
    folder = WILD / "02-tiff-16bit-min-is-white"
    truth = np.load(folder / "truth.npy")
    for name in ("little", "big"):
        yield from pixels_of(folder / f"{name}.tif", truth, 65535, True)
    yield from pixels_of(folder / "8bit.tif", (truth >> 8).astype(np.uint8), 255, False)


def packed_bits() -> Iterator[Row]:
    folder = WILD / "03-tiff-10-12-14-bit"
    truth = np.load(folder / "truth.npy")
    for path in sorted(folder.glob("*.tif")):
        bits = int(re.sub(r"\D", "", path.stem))
        yield from pixels_of(path, truth, 1, True, 1 / (2**bits - 1))


def signed() -> Iterator[Row]:
    for name in ("int8", "int16"):
        yield from pixels_of(WILD / "04-tiff-signed-8bit" / f"{name}.tif", None, 1, True)


def odd_runs() -> Iterator[Row]:
    folder = WILD / "06-bmp-rle4-odd-run"
    yield from list(pixels_of(folder / "rle4.bmp", np.load(folder / "truth.npy"), 255, True))[:1]


def open_tiny(path: Path) -> Any:
    return vitrail.load_model(path, **TINY)


def entry_net() -> Iterator[Row]:
    folder = WILD / "07-checkpoint-entry-net"
    as_model, as_net = (open_tiny(folder / name).preprocess for name in ("model.pth", "net.pth"))
    yield Row("net.pth beside model.pth", f"{as_net.crop}, {as_net.mean}", as_net == as_model)


def mmengine_average() -> Iterator[Row]:
    model = open_tiny(WILD / "08-checkpoint-mmengine-ema" / "epoch_3.pth")
    with torch.inference_mode():
        logits = model(torch.ones(1, 3, 32, 32))
    yield Row("epoch_3.pth", f"logits up to {logits.abs().max():.3f}", bool(logits.abs().max() > 0))


def mean_of_255() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        words = ("preprocess.mean=[123.675,116.28,103.53]", "preprocess.std=[58.395,57.12,57.375]")
        ran = vitrail_command("train", "digits", *words, "train.epochs=3", f"output.root={place}")
    yield Row("vitrail train digits preprocess.mean=[123.675,...]", ran.message(), ran.refused() and "255" in ran.said)


def other_validation() -> Iterator[Row]:
    """Train, take validation images away, lengthen the run."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "tv")
        for number in range(32):
            draw = np.random.default_rng(number).integers(0, 80, (40, 40, 3), dtype=np.uint8)
            draw[..., number % 2] += 60
            folder = root / ("train" if number < 16 else "val") / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw).save(folder / f"{number}.png")
        recipe = WILD / "10-resume-other-validation" / "tiny.yaml"
        settings = (f"data.root={root}", f"output.root={place}/runs", "output.name=v")
        first = vitrail_command("train", recipe, *settings)
        for path in sorted((root / "val" / "cat").iterdir())[:6]:
            path.unlink()
        ran = vitrail_command("train", "--extend", f"{place}/runs/v", "train.epochs=3")
    told = ran.refused() or "warning" in ran.said
    yield Row("6 of 8 validation images of a class removed, then --extend", ran.message(), not first.status and told)


def slow_formats() -> Iterator[Row]:
    slow = b"P6 2000 2000 254\n" + bytes(number % 255 for number in range(12_000_000))
    for name, data in (("rle4.bmp", (WILD / "11-serve-slow-formats" / "rle4.bmp").read_bytes()), ("slow.ppm", slow)):
        cost = estimate_cost(data)
        told = f"takes {cost.seconds:.1f} s by its header ({cost.reason}), and holds no quick image up in the server"
        yield Row(name, told, cost.seconds > QUICK_S)


def served_formats() -> Iterator[Row]:
    for name, channels in (("five.tif", 5), ("five.npy", 5), ("la16.tif", 3)):
        data = (WILD / "12-serve-refuses-tiff" / name).read_bytes()
        try:
            check_picture(data, 10**8)
            shape = tuple(decode(data, PixelFormat(channels)).shape)
            yield Row(name, f"taken, {shape}", shape[0] == channels)
        except Exception as error:
            yield Row(name, short(error), False)


def opened(folder: str, *names: str) -> Iterator[Row]:
    for name in names:
        try:
            model = open_tiny(WILD / folder / name)
            yield Row(name, f"opened, {sum(p.numel() for p in model.parameters()):,} parameters", True)
        except Exception as error:
            yield Row(name, short(error), False)


def entries_and_prefixes() -> Iterator[Row]:
    names = ("model_state_dict.pth", "net-prefix.ckpt", "timm_model.safetensors", "inner.pth")
    yield from opened("13-checkpoint-entries-and-prefixes", *names)


def mmengine_history() -> Iterator[Row]:
    yield from opened("14-checkpoint-mmengine-history", "epoch_1.pth")


def images_of(
    name: str, section: DataSection, right: Callable[[Source], bool], *, may_refuse: bool = True
) -> Iterator[Row]:
    """Find the images of some data, and say whether they, or a refusal, are right."""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            source, notes = open_split(section, "all")
    except Exception as error:
        yield Row(name, short(error), may_refuse and isinstance(error, vitrail.errors.VitrailError))
        return
    said = "; ".join([*map(str, notes), *(str(one.message) for one in told)])
    yield Row(name, f"{len(source)} images of {source.classes!a}; {said}", right(source))


def unicode_names() -> Iterator[Row]:
    folder = WILD / "15-class-names-nfc-nfd"
    yield from images_of(
        "labels.csv", DataSection(list=str(folder / "labels.csv")), lambda source: len(source.classes) == 2
    )
    ran = vitrail_command("check-data", f"data.root={folder / 'folders'}", "--output", "page")
    yield Row("folders, train/ and val/", ran.message(), "missing from" not in ran.said + ran.out)


def bad_lists() -> Iterator[Row]:
    model = WILD / "07-checkpoint-entry-net" / "model.pth"
    ran = vitrail_command("predict", model, WILD / "16-predict-list-utf16" / "list.txt", *AS_SETTINGS)
    # the images that it names are not there
    yield Row("list.txt (UTF-16)", ran.message(), ran.refused() or (ran.status == 1 and TRACEBACK not in ran.said))


def outputs() -> Iterator[Row]:
    model = WILD / "07-checkpoint-entry-net" / "model.pth"
    with tempfile.TemporaryDirectory() as place:
        photo = Path(place, "photos", "a.png")
        photo.parent.mkdir()
        Image.new("RGB", (40, 40)).save(photo)
        before = photo.read_bytes()
        for target in (photo, photo.parent):
            words = ("predict", model, photo.parent, "--output", target, "--format", "csv", *AS_SETTINGS)
            ran = vitrail_command(*words)
            kept = photo.read_bytes() == before
            yield Row(f"--output {target.relative_to(place)}", ran.message(), ran.refused() and kept)


def checked(*folders: Path) -> Ran:
    """Look at folders as the training and the validation part of a set."""
    with tempfile.TemporaryDirectory() as place:
        for part, folder in zip(("train", "val"), folders, strict=True):
            shutil.copytree(folder, Path(place, part), symlinks=True)
        return vitrail_command("check-data", f"data.root={place}", "--output", f"{place}/page", seconds=60)


def other_endings() -> Iterator[Row]:
    folder = WILD / "19-other-format-as-jpg"
    for path in sorted(folder.glob("*.jpg")):
        with tempfile.TemporaryDirectory() as place:
            for kind in ("a", "b"):
                Path(place, kind).mkdir()
                shutil.copy(path, Path(place, kind))
            ran = checked(Path(place), Path(place))
        found = [line for line in ran.out.splitlines() if re.search("ending|cannot be read", line)]
        yield Row(path.name, f"status {ran.status}: {' '.join(' '.join(found).split())}", bool(found))


def no_ghostscript() -> Iterator[Row]:
    path = WILD / "20-eps-as-jpg-runs-ghostscript" / "photo.jpg"
    try:
        decode(path.read_bytes())
        yield Row("photo.jpg", "read", False)
    except UnreadableImage as error:
        yield Row("photo.jpg", short(error), "EPS" in str(error))


def system_folders() -> Iterator[Row]:
    root = WILD / "21-folders-of-systems" / "root"
    yield from images_of("root", DataSection(root=str(root)), lambda source: len(source) == 2, may_refuse=False)


def endings_of_images() -> Iterator[Row]:
    root = WILD / "22-jfif-and-heic-are-no-images" / "root"
    ran = checked(root, root)
    text = ran.out + ran.said
    told = [line for line in text.splitlines() if "heic" in line]
    yield Row(
        "root", f"status {ran.status}: {' '.join(' '.join(told).split())}", bool(told) and "ignored 4" not in text
    )


def tables() -> Iterator[Row]:
    classes = {"floats": ("0", "1", "2", "10")}
    for path in sorted((WILD / "23-lists-of-tables").glob("*.csv")):
        wanted = classes.get(path.stem, ("cat", "dog"))
        yield from images_of(
            path.name, DataSection(list=str(path)), lambda source, wanted=wanted: tuple(source.classes) == wanted
        )


def fifo() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        for kind in ("a", "b"):
            Path(place, kind).mkdir()
            for number in range(10):
                Image.new("RGB", (40, 40), (number, 0, 0)).save(Path(place, kind, f"{number}.png"))
        os.mkfifo(Path(place, "a", "x.png"))
        ran = vitrail_command("check-data", f"data.root={place}", "--output", f"{place}/page", seconds=60)
    yield Row("a/x.png", ran.message(), ran.status in (0, 1) and TRACEBACK not in ran.said)


def timm_values() -> Iterator[Row]:
    """A timm folder of each config.json beside weights that fit."""
    with tempfile.TemporaryDirectory() as place:
        weights = dict(open_tiny(WILD / "07-checkpoint-entry-net" / "model.pth").state_dict())
        for path in sorted((WILD / "26-timm-config-values").glob("*.json")):
            folder = Path(place, path.stem)
            folder.mkdir()
            save_file(weights, folder / "model.safetensors")
            shutil.copy(path, folder / "config.json")
            try:
                preprocess: Preprocess = open_tiny(folder).preprocess
                sane = max(preprocess.mean) <= 1 and 0 < preprocess.crop <= 1
                yield Row(path.name, f"opened, {dataclasses.asdict(preprocess)}", sane)
            except Exception as error:
                yield Row(path.name, short(error), isinstance(error, vitrail.errors.VitrailError))


def one_logit() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        draw = np.random.default_rng(0)
        for number in range(2):
            picture = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            picture.save(Path(place, f"{number}.png"))
        table = Path(place, "answers.csv")
        path = WILD / "27-head-of-one-logit" / "one.pth"
        ran = vitrail_command("predict", path, place, "--output", table, "--format", "csv", *AS_SETTINGS)
        text = table.read_text() if table.exists() else ""
        certain = "1.000000" in text
    yield Row("one.pth", f"{ran.message()} {text[:120]!r}", ran.refused() or (not ran.status and not certain))


def natural_order() -> Iterator[Row]:
    folder = WILD / "29-timm-order-of-classes"
    ran = vitrail_command("evaluate", folder / "always-2.pth", f"data.root={folder / 'root'}", "data.check=false",
                          "evaluate.split=all", *AS_SETTINGS)  # fmt: skip
    yield Row("always-2.pth", ran.message(), "class_order" in ran.said)


CASES: tuple[tuple[str, str, Callable[[], Iterator[Row]]], ...] = (
    ("01", "16-bit colours in separate planes: the values", planar),
    ("02", "16-bit gray where 0 is white: inverted, or a refusal", min_is_white),
    ("03", "6 to 14 bits a sample: scaled by their own range, or a refusal", packed_bits),
    ("04", "signed samples: a refusal", signed),
    ("06", "RLE4 with an odd run: the values, or a refusal", odd_runs),
    ("07", "an entry `net`: the preprocessing of the model", entry_net),
    ("08", "mmengine's average, swapped into state_dict: not the zeros", mmengine_average),
    ("09", "a mean of 0 to 255: refused with the reason", mean_of_255),
    ("10", "other validation images in a longer run: refused or said", other_validation),
    ("11", "formats that Pillow decodes in Python: known by their header where a stranger sends them", slow_formats),
    ("12", "what a model of 5 channels was trained on: served too", served_formats),
    ("13", "entries and prefixes: opened", entries_and_prefixes),
    ("14", "mmengine's history beside the weights: opened, nothing run", mmengine_history),
    ("15", "one class name in two Unicode forms: one class, or a refusal that says so", unicode_names),
    ("16", "a list in UTF-16: read, or one line", bad_lists),
    ("17", "an output that would replace an input, or is a folder: refused before the work", outputs),
    ("19", "AVIF, JPEG 2000 and TGA named .jpg: named by check-data", other_endings),
    ("20", "EPS named .jpg: refused, no program started", no_ghostscript),
    ("21", "thumbnails of a NAS: passed over", system_folders),
    ("22", ".jfif and .jpe read, .heic named", endings_of_images),
    ("23", "tables as other programs write them: read, or one line", tables),
    ("24", "a FIFO: passed over", fifo),
    ("26", "config.json of timm: opened with sane values, or the setting that settles it", timm_values),
    ("27", "a head of one logit: no probability of 1 for everything", one_logit),
    ("29", "timm's order of classes: said where it differs, with the setting", natural_order),
)


def main(case: str | None = None) -> None:
    """Print a table and write it beside this file."""
    if not WILD.is_dir():
        raise SystemExit(f"{WILD} is not there")
    page: list[str] = []
    wrong = total = 0
    for number, right, rows in CASES:
        if case in (None, number):
            page += ["", f"## {number}: {right}", "", "| file | now | right |", "|-|-|-|"]
            for row in rows():
                total += 1
                wrong += not row.right
                now = re.sub(r"/tmp/\w+", "FOLDER", row.now.replace("|", "\\|").replace(str(WILD), "wild"))
                page.append(f"| {row.name} | {now[:300]} | {'yes' if row.right else 'NO'} |")
    if case is None:
        page += ["", "## Decoders over damaged images", "", *count(DAMAGED)]
        summary = f"{total} rows, {wrong} wrong"
        publish("wild", "Files as they are met in the wild", [MADE, summary], page[1:])
    else:
        print("\n".join(page))


if __name__ == "__main__":
    cyclopts.run(main)
