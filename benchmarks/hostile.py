"""Open bombs and files that describe themselves wrongly, and measure what each costs before it is refused.

    uv run python benchmarks/hostile.py [--files 1200]

Bombs are small files that ask for much memory or time. Descriptions are those of real files, weights, exported files,
config.json, YAML, lists of names and of parts, and indices of shards, with one value replaced by what no such file has:
another type, a huge or negative number, one that is none, thousands of digits, lists within lists, escapes, or nothing.
The digests of such a file are left out, as whoever changes it on purpose does; a few keep them and must be refused.
Damaged files are exported files and indices with some bits flipped or their end cut off, with a digest and without.
Each file is tried in a process of its own, forked from one that has all modules, so that its memory and its seconds are
its own, and a crash of a runtime is told. A right outcome is a model that answers, or one line that says what is wrong;
anything else is counted as other, and named below the table.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from side_by_side import publish

from vitrail.cli.app import main as command_line
from vitrail.data.shards import INDEX
from vitrail.errors import VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.inference.engines import cpu
from vitrail.inference.exported import describe as describe_file
from vitrail.inference.exported import read_texts
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import KEY, Record, model_options, provenance, save_model
from vitrail.weights.digest import COMMENT, DIGESTS
from vitrail.weights.formats.protobuf import block
from vitrail.weights.loading import load_model

NAME, CLASSES = "tnt_ti_patch16_224", ("ant", "bee", "cat")
SECONDS, MEMORY = 60, 2 * 2**30
"""What a process may take, of processors and beside what it began with, before it is ended."""
PATIENCE = 1200
"""Seconds of the clock until a process that waits is ended; other programs make those of a busy machine many."""
RAW = "raw:"
"""Begins a text that is written into JSON as it stands, as no value of Python is written so."""
DEEP = 20_000
VALUES: tuple[Any, ...] = (
    None, True, False, "", "text", 0, -1, 1, 7, 4097, 10**9, 10**18, -(10**30), 10**100, 0.5, -0.5, 1e-300, 1e308,
    float("nan"), float("inf"), float("-inf"), [], {}, [[[]]], [1, "two", None], {"a": {"b": {}}}, ["x"] * 5000,
    "x" * 100_000, "\x1b[2J\x1b]0;title\x07", "a\0b", "../../../etc/passwd", "/dev/zero", "hf:stranger/tracker",
    "https://example.com/weights", "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", f"{RAW}1e999", f"{RAW}-0",
    f"{RAW}{'9' * 5000}", f"{RAW}0.{'1' * 5000}", f'{RAW}"\\ud800"', f"{RAW}{'[' * DEEP}{']' * DEEP}", "(a+)+$",
)  # fmt: skip
MISSING = object()


@dataclass
class Case:
    """A file, what is wrong with it, and what is done with it."""

    kind: str
    what: str
    actions: dict[str, Callable[[], str]]
    must_be_refused: bool = False


@dataclass
class Found:
    """What became of a case."""

    verdict: str
    seconds: float = 0.0
    """Of processors, which other programs do not lengthen; of the clock where it was ended."""
    memory: float = 0.0
    """MiB beside those that the process began with."""
    told: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)


# Bombs: pickles, archives and headers.


def named(module: str, name: str) -> bytes:
    """Return the instruction that names a global."""
    return f"c{module}\n{name}\n".encode()


def text(value: str) -> bytes:
    """Return the instruction that makes a text."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return the instruction that makes a whole number of eight bytes."""
    return b"\x8a\x08" + struct.pack("<q", value)


def zipped(
    described: bytes, name: str = "data.pkl", more: dict[str, bytes] | None = None, *, small: bool = False
) -> bytes:
    """Return an archive as torch.save writes it, around a pickle."""
    buffer = io.BytesIO()
    parts = {f"archive/{name}": described, "archive/version": b"3\n", "archive/byteorder": b"little", **(more or {})}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED) as archive:
        for entry, data in parts.items():
            archive.writestr(entry, data)
    return buffer.getvalue()


def view(stride: int, size: int) -> bytes:
    """Return the instructions for a tensor of so many values over a storage of four."""
    storage = text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + number(4)
    about = number(0) + b"(" + number(size) + b"t(" + number(stride) + b"t\x89"
    tail = named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + b"((" + storage + b"tQ" + about + tail + b"tR"


def torch_bombs() -> Iterator[tuple[str, str, bytes]]:
    """Yield name, ending and content of small files that PyTorch's own reader may follow into gigabytes."""
    begin, array = b"\x80\x02", named("builtins", "bytearray") + number(4 * 10**9) + b"\x85R"
    yield "description in other letters", ".pth", zipped(begin + array + b".", "DATA.PKL")
    old = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    head = b"".join(pickle.dumps(part, 2) for part in old)
    yield "fifth pickle of the old format", ".pth", head + begin + b"}." + begin + array + b"."
    yield "bytearray", ".pth", zipped(begin + array + b".")
    encode = named("_codecs", "encode")
    doubling = encode * 28 + text("x" * 16) + text("latin1") + b"\x86R" + (text("hex") + b"\x86R") * 27 + b"."
    yield "27 times hex", ".pth", zipped(begin + doubling)
    wide = "".join(chr(0x4E00 + index % 20000) for index in range(300_000))
    yield "punycode of 300,000 letters", ".pth", zipped(begin + encode + text(wide) + text("punycode") + b"\x86R.")
    objects = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + number(5 * 10**8) + b"\x85"
    yield "array of objects", ".pth", zipped(begin + objects + text("O") + b"\x87R.")
    stored = {"archive/data/0": bytes(16)}
    cast = named("torch._utils", "_rebuild_device_tensor_from_cpu_tensor") + b"(" + view(0, 5 * 10**8)
    cast += named("torch", "float64") + text("cpu") + b"\x89tR"
    yield "cast of a view of stride 0", ".pth", zipped(begin + b"}" + text("w") + cast + b"s.", more=stored)
    yield "view of stride 0", ".pth", zipped(begin + b"}" + text("w") + view(0, 5 * 10**8) + b"s.", more=stored)
    yield "description of 1 GB that was 1 MB", ".pth", zipped(bytes(2**30), small=True)
    yield (
        "tensor of 1 GB that was 1 MB",
        ".pth",
        zipped(begin + b"}.", more={"archive/data/0": bytes(2**30)}, small=True),
    )
    yield "2,000,000 tuples in each other", ".pth", begin + b")" + b"\x85" * 2_000_000 + b"."
    yield "lists of lists that double", ".pth", zipped(begin + b"]q\x00" + b"(h\x00h\x00lq\x00" * 60 + b".")
    yield (
        "number of 10,000,000 bytes",
        ".pth",
        zipped(begin + b"\x8b" + struct.pack("<i", 10**7) + b"\x7f" * 10**7 + b"."),
    )
    yield "number of 100,000 digits", ".pth", begin + b"I" + b"9" * 100_000 + b"\n."
    yield "8 bytes that promise 4 GB", ".pth", b"\x80\x04\x8e" + struct.pack("<Q", 4 * 10**9) + b"x."
    yield (
        "200,000 entries of nothing",
        ".pth",
        zipped(begin + b"}.", more={f"archive/{i}": b"" for i in range(200_000)}),
    )


def other_bombs() -> Iterator[tuple[str, str, bytes]]:
    """Yield the same of other kinds of files."""
    for name, header in (
        ("type F4", b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'),
        ("shape of 2^62", b'{"a":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]}}'),
        ("lists in each other", b'{"a":' + b"[" * 10**6),
        (
            "1,000,000 tensors",
            b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(10**6)) + b"}",
        ),
        ("90 MB of names", b'{"__metadata__":{"vitrail":"' + b"[" * (90 * 2**20) + b'"}}'),
    ):
        yield f"safetensors, {name}", ".safetensors", struct.pack("<Q", len(header)) + header + b"\0"
    sizes = b"\x08\x01" * 1_000_000
    tensor = sizes + block(2, "Float32") + block(3, bytes(4))
    yield "MindSpore, 1,000,000 sizes", ".ckpt", block(1, block(1, "a") + block(2, tensor))
    many = b"".join(
        block(1, block(1, str(i)) + block(2, b"\x08\x00" + block(2, "Int8") + block(3, b""))) for i in range(10**6)
    )
    yield "MindSpore, 1,000,000 values", ".ckpt", many
    huge = block(1, "a") + block(2, b"\x08\xff\xff\xff\xff\x0f" + block(2, "Float32") + block(3, bytes(4)))
    yield "MindSpore, 17 GB claimed", ".ckpt", block(1, huge)
    yield "TorchScript, description of 3 GB", ".torchscript", packed(3 * 2**30)
    yield "pt2, description of 3 GB", ".pt2", packed(3 * 2**30)
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
    yield "OpenVINO, entities", ".xml", f'<!DOCTYPE n [<!ENTITY l0 "ha">{laughs}]><net>&l11;</net>'.encode()
    yield "OpenVINO, elements in each other", ".xml", b"<a>" * 1_000_000
    yield "ONNX, 4 GB claimed", ".onnx", b"\x72\xff\xff\xff\xff\x0f" + bytes(64)


def packed(size: int) -> bytes:
    """Return an archive with a description of so many zeros, compressed."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(zipfile.ZipInfo(f"model/extra/{KEY}"), "w", force_zip64=True) as entry,
    ):
        for _ in range(size // 2**24):
            entry.write(bytes(2**24))
    data = buffer.getvalue()
    return data


def bombs(place: Path) -> Iterator[Case]:
    """Yield all of them, written into a folder."""
    for index, (what, suffix, content) in enumerate((*torch_bombs(), *other_bombs())):
        path = place / f"bomb{index}{suffix}"
        path.write_bytes(content)
        yield Case(
            "bomb", what, {"load": loading(path)} if suffix[1:] not in EXPORTED else {"predict": cli_predict(path)}
        )


# Descriptions: those of real files with one value replaced.

EXPORTED = ("torchscript", "onnx", "xml", "pt2")


def originals(place: Path) -> tuple[Path, Path]:
    """Write a weight file that knows its images, as training leaves it, and those images."""
    draw, root = np.random.default_rng(0), place / "images"
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = draw.integers(0, 255, (32, 40, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.jpg")
    torch.manual_seed(0)
    model = create_model(NAME, **{**find_variant(NAME)[0].tiny, "num_classes": len(CLASSES)})
    record = Record(
        model=NAME,
        options=model_options(model),
        classes=CLASSES,
        preprocess=Preprocess(size=(32, 32)),
        recipe={
            "data": {"root": str(root), "val_split": "val", "workers": 0, "folds": None, "group_regex": None},
            "train": {"epochs": 1},
        },
        provenance={**provenance(), "training_counts": [2, 2, 2], "images": {"train": "a" * 16}, "sketch": "0" * 20},
        metrics={"epoch": 1, "val_loss": 1.1, "val_top1": 33.3, "val_top5": 100.0},
    )
    path = place / "best.safetensors"
    save_model(path, model.state_dict(), record)
    return path, root


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where each value stands, those that hold others too."""
    if above:
        yield above
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inside:
        yield from places(value, (*above, key))


def replaced(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    """Return a description with one value replaced, or taken out."""
    copied = json.loads(json.dumps(content))
    target = copied
    for key in at[:-1]:
        target = target[key]
    if value is MISSING:
        del target[at[-1]]
    else:
        target[at[-1]] = value
    return copied


def as_json(content: Any) -> str:
    """Return JSON in which marked texts stand as they are."""
    parts = json.dumps(content).split(f'"{RAW}')
    for index, part in enumerate(parts[1:], 1):
        raw, decoder = part, json.JSONDecoder()
        whole, end = decoder.raw_decode(f'"{raw}')
        parts[index] = whole + raw[end - 1 :]
    return "".join(parts)


def mutants(content: Any, draw: random.Random, count: int) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, and the text of a description with that in it."""
    every = [(at, value) for at in places(content) for value in (*VALUES, MISSING)]
    same = json.dumps(content)
    for at, value in draw.sample(every, min(count, len(every))):
        shown = "missing" if value is MISSING else ascii(value)[:40]
        if (text := as_json(replaced(content, at, value))) != same:
            yield f"{'.'.join(map(str, at))} is {shown}", text


def descriptions(place: Path, best: Path, images: Path, count: int) -> Iterator[Case]:
    """Yield descriptions of every kind of file, in fair shares."""
    draw, image = random.Random(17), next(images.rglob("*.jpg"))
    with safe_open(best, "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    own = json.loads(metadata[KEY])
    for index, (what, said) in enumerate(mutants(own, draw, count // 2)):
        path = place / f"own{index}.safetensors"
        safetensors.torch.save_file(weights, path, {"format": "pt", KEY: said})
        yield Case("weights", what, everything(path, image, exports=index % 3 == 0))
    digests = {name: metadata[name] for name in DIGESTS}
    for index, (what, said) in enumerate(mutants(own, draw, count // 50)):
        path = place / f"kept{index}.safetensors"
        safetensors.torch.save_file(weights, path, {"format": "pt", KEY: said, **digests})
        yield Case("weights, digests kept", what, everything(path, image, exports=False), must_be_refused=True)
    yield from exported(place, best, image, draw, count // 6)
    config = {
        "architecture": NAME, "num_classes": 3, "label_names": list(CLASSES), "model_args": {"norm_eps": 1e-5},
        "pretrained_cfg": {
            "input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "mean": [0.5] * 3,
            "std": [0.5] * 3, "num_classes": 3, "crop_mode": "center",
        },
        "id2label": {"0": "ant", "1": "bee", "2": "cat"},
    }  # fmt: skip
    options = [f"weights.model={NAME}", *(f"weights.options.{k}={own['options'][k]}" for k in OPTIONS)]
    for index, (what, said) in enumerate(mutants(config, draw, count // 8)):
        folder = place / f"timm{index}"
        folder.mkdir()
        safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(said)
        yield Case(
            "config.json", what, everything(folder, image, options, [f"data.root={images}"], exports=index % 3 == 0)
        )
    names = {str(index): name for index, name in enumerate(CLASSES)}
    for index, (what, said) in enumerate(mutants(names, draw, count // 24)):
        path = place / f"names{index}.json"
        path.write_text(said)
        yield Case(
            "names .json", what, everything(best, image, [f"weights.classes={path}"], loads=False, exports=False)
        )
    recipe = {
        "model": {"name": NAME, "image_size": 32, "options": {"depth": 2, "norm_eps": 1e-5}},
        "preprocess": {"crop": 0.9, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"},
        "data": {"root": str(images), "workers": 0, "val_split": "val", "channels": 3, "bits": 8},
        "evaluate": {"batch_size": 4, "split": "val"},
    }
    for index, (what, said) in enumerate((*mutants(recipe, draw, count // 6), *yaml_bombs())):
        path = place / f"recipe{index}.yaml"
        path.write_text(said)
        yield Case("YAML", what, everything(best, image, ["--config", str(path)], loads=False, exports=index % 3 == 0))
    yield from indices(place, best, images, draw, count // 6)


OPTIONS = ("image_size", "embed_dim", "inner_dim", "depth", "num_heads", "inner_num_heads")


def yaml_bombs() -> Iterator[tuple[str, str]]:
    """Yield YAML that is short and stands for much."""
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    yield "aliases that double", "\n".join(lines)
    yield "options of aliases that double", "\n".join([*lines, "model: {options: {depth: *a39}}"])
    yield "an alias of itself", "model: &m {options: {depth: *m}}"
    yield "number of 5,000 hexadecimal digits", f"evaluate: {{batch_size: 0x{'f' * 5000}}}"
    yield "a date that is none", "evaluate: {batch_size: 2026-99-99}"
    yield "an object", "evaluate: !!python/object/apply:os.system [ls]"


def exported(place: Path, best: Path, image: Path, draw: random.Random, count: int) -> Iterator[Case]:
    """Yield exported files with the description replaced."""
    for form in ("onnx", "openvino", "torchscript"):
        run(["export", str(best), "--format", form, "--device", "cpu"])
    said = to_content(best.with_suffix(".onnx"))
    for suffix in EXPORTED:
        about = {
            "format": suffix,
            "details": {**said["provenance"]["exported"]["details"], "device": "cpu", "cpu": cpu()},
        }
        if suffix != "pt2":
            about = describe_file(best.with_suffix(f".{suffix}")).record.provenance["exported"]
        said["provenance"]["exported"] |= about
        for index, (what, words) in enumerate(mutants(said, draw, count // 4)):
            path = place / f"exported{index}.{suffix}"
            describe_as(best, path, words)
            yield Case(f".{suffix}", what, {"predict": cli_predict(path, image), "evaluate": cli_evaluate(path)})
        for index, (what, words) in enumerate(mutants(said, draw, count // 24)):
            if suffix == "pt2":
                break
            path = place / f"kept{index}.{suffix}"
            describe_as(best, path, words, is_kept=True)
            actions = {"predict": cli_predict(path, image), "evaluate": cli_evaluate(path)}
            yield Case(f".{suffix}, digests kept", what, actions, must_be_refused=True)
        if suffix != "pt2":
            yield from damaged_exports(place, best, image, draw, count // 4, suffix)


def damaged_exports(
    place: Path, best: Path, image: Path, draw: random.Random, count: int, suffix: str
) -> Iterator[Case]:
    """Yield exported files with bits flipped or their end cut off, half of them without a digest."""
    whole, plain = best.with_suffix(f".{suffix}"), place / f"plain.{suffix}"
    describe_as(best, plain, json.dumps(to_content(whole)))
    for index in range(count):
        is_kept = index % 2 == 0
        path = place / f"damaged{index}.{suffix}"
        what, data = damaged((whole if is_kept else plain).read_bytes(), draw)
        path.write_bytes(data)
        if suffix == "xml":
            beside = whole.with_suffix(".bin").read_bytes()
            if index % 4 > 1:  # the weights instead
                path.write_bytes((whole if is_kept else plain).read_bytes())
                what, beside = damaged(beside, draw)
                what = f".bin {what}"
            path.with_suffix(".bin").write_bytes(beside)
        kind = f".{suffix}, damaged, {'with' if is_kept else 'without'} a digest"
        yield Case(kind, what, {"predict": cli_predict(path, image)}, must_be_refused=is_kept)


def damaged(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return what was done to the bytes of a file, and the bytes."""
    bent = bytearray(data)
    if draw.random() < 0.25:
        length = draw.choice((1, 2, 8, 100, draw.randrange(1, len(data))))
        return f"without its last {length} bytes", bytes(bent[:-length])
    bits = sorted(draw.randrange(8 * len(data)) for _ in range(draw.choice((1, 1, 2, 8))))
    for bit in bits:
        bent[bit // 8] ^= 1 << bit % 8
    return f"bits {', '.join(map(str, bits))} flipped", bytes(bent)


def to_content(path: Path) -> dict[str, Any]:
    """Return what an exported file says of itself."""
    return json.loads(read_texts(path)[KEY])


def indices(place: Path, best: Path, images: Path, draw: random.Random, count: int) -> Iterator[Case]:
    """Yield lists of the parts of a model and indices of shards, with a value replaced or damaged."""
    weights = safetensors.torch.load_file(best)
    names, parts = sorted(weights)[:6], ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    known = {name: parts[index % 2] for index, name in enumerate(names)}
    content = {"metadata": {"total_size": 3600}, "weight_map": known}
    folder = place / "parts"
    folder.mkdir()
    for part in parts:
        safetensors.torch.save_file({name: weights[name] for name in names if known[name] == part}, folder / part)
    texts = [(what, said.encode()) for what, said in mutants(content, draw, count // 4)]
    texts += [damaged(json.dumps(content).encode(), draw) for _ in range(count // 4)]
    for index, (what, data) in enumerate(texts):
        path = folder / f"{index}.index.json"
        path.write_bytes(data)
        yield Case("*.index.json", what, {"verify": cli(["verify", str(path)]), "predict": cli_predict(path)})
    packed = place / "packed"
    run(["pack", f"data.root={images}", "--output", str(packed)])
    with safe_open(packed / INDEX, "pt") as file:
        columns, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    (key,) = metadata
    whole = (packed / INDEX).read_bytes()
    files = [
        (what, safetensors.torch.save(columns, {key: said}))
        for what, said in mutants(json.loads(metadata[key]), draw, count // 4)
    ]
    files += [damaged(whole, draw) for _ in range(count // 4)]
    for index, (what, data) in enumerate(files):
        path = place / f"shards{index}" / INDEX
        path.parent.mkdir()
        for shard in packed.glob("*.tar"):
            shutil.copy(shard, path.parent)
        path.write_bytes(data)
        yield Case(INDEX, what, {
            "verify": cli(["verify", str(path)]), "evaluate": cli_evaluate(best, (f"data.root={path.parent}",)),
        })  # fmt: skip


def describe_as(best: Path, path: Path, words: str, *, is_kept: bool = False) -> None:
    """Write an exported file with another description; where they are not kept, its digests are left out."""
    import onnx

    original = best.with_suffix(path.suffix)
    if path.suffix == ".onnx":
        model = onnx.load(original)
        for entry in model.metadata_props:
            if entry.key == KEY:
                entry.value = words
        kept = [entry for entry in model.metadata_props if is_kept or entry.key not in DIGESTS]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        onnx.save(model, path)
    elif path.suffix == ".xml":
        from xml.etree import ElementTree

        tree = ElementTree.parse(original)
        about = tree.getroot().find("rt_info")
        assert about is not None
        for entry in list(about):
            if entry.tag == KEY:
                entry.set("value", words.replace("\0", ""))
            elif entry.tag in DIGESTS and not is_kept:
                about.remove(entry)
        tree.write(path)
        shutil.copy(original.with_suffix(".bin"), path.with_suffix(".bin"))
    elif path.suffix == ".pt2":  # its description comes before the program, of which there is none here
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/extra/{KEY}", words)
    else:
        with zipfile.ZipFile(original) as source, zipfile.ZipFile(path, "w") as archive:
            for entry in source.infolist():
                is_said = entry.filename.endswith(f"/extra/{KEY}")
                archive.writestr(entry.filename, words if is_said else source.read(entry))
            if is_kept:
                archive.comment = source.comment
                assert len(archive.comment) == COMMENT


# What is done with each, and what came of it.


def loading(path: Path) -> Callable[[], str]:
    """Return what loads a model and asks it once."""

    def load() -> str:
        try:
            model = load_model(path)
            channels, size = model.config.in_channels, model.config.size
            with torch.inference_mode():
                logits = model(torch.zeros(1, channels, *size))
        except VitrailError as error:
            return "refused" if "\n" not in str(error) and len(str(error)) < 2000 else f"not one line: {error}"
        return "right" if logits.isfinite().all() else "answers that are no numbers"

    return load


def run(words: list[str]) -> tuple[int, str]:
    """Run the command line and return its status and what it said."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command_line(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
    return status, err.getvalue()


def cli(words: list[str]) -> Callable[[], str]:
    """Return what runs a command and says what came of it."""

    def act() -> str:
        status, said = run(words)
        if status == 0:
            return "right"
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        return (
            "refused"
            if status == 2 and len(errors) == 1 and len(errors[0]) < 2000
            else f"status {status}: {said[:300]}"
        )

    return act


def cli_predict(path: Path, image: Path | None = None, more: tuple[str, ...] = ()) -> Callable[[], str]:
    """Return what classifies an image by a file."""
    output = path.parent / "predictions.json"
    return cli(["predict", str(path), str(image or path), "--output", str(output), "--device", "cpu", *more])


def cli_evaluate(path: Path, more: tuple[str, ...] = ()) -> Callable[[], str]:
    """Return what evaluates a file on the images that its description, or a setting, names."""
    return cli(["evaluate", str(path), "evaluate.device=cpu", "data.workers=0", *more])


def everything(
    path: Path,
    image: Path,
    settings: list[str] | None = None,
    data: list[str] | None = None,
    *,
    loads: bool = True,
    exports: bool = True,
) -> dict[str, Callable[[], str]]:
    """Return all that is done with a weight file."""
    more = tuple(settings or ())
    target = path.with_name(f"{path.name}.torchscript")
    export = ["export", str(path), "--format", "torchscript", "--output", str(target), "--device", "cpu", *more]
    return {
        **({"load": loading(path)} if loads and not more else {}),
        "evaluate": cli_evaluate(path, (*more, *(data or ()))),
        "predict": cli_predict(path, image, more),
        **({"export": cli(export)} if exports else {}),
    }


def resident() -> int:
    """Return the bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def attempt(case: Case) -> Found:
    """Do all that is to be done with a file in a process of its own."""
    read, write = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(read)
        began = resident()
        signal.alarm(PATIENCE)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))  # a forked process begins at 0
        data = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (data + MEMORY, -1))
        outcomes = {}
        for name, act in case.actions.items():
            try:
                outcomes[name] = act()
            except BaseException as error:  # what is counted here is what must not happen
                outcomes[name] = f"{type(error).__name__}: {str(error)[:200]}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        used = resource.getrusage(resource.RUSAGE_SELF)
        answer = {
            "outcomes": outcomes,
            "seconds": used.ru_utime + used.ru_stime,
            "memory": max(peak - began, 0) / 2**20,
        }
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    _, status, _ = os.wait4(child, 0)
    seconds = time.perf_counter() - started
    if status or not said:
        return Found(f"ended by {signal.Signals(status & 0x7F).name}", seconds)
    answer = json.loads(said)
    outcomes = answer["outcomes"]
    odd = {name: outcome for name, outcome in outcomes.items() if outcome not in ("right", "refused")}
    verdict = "other" if odd else "right" if "right" in outcomes.values() else "refused"
    if verdict == "right" and case.must_be_refused:
        odd, verdict = outcomes, "accepted"
    return Found(verdict, answer["seconds"], answer["memory"], str(odd) if odd else "", outcomes)


CASES: list[Case] = []
"""Those that processes that are forked later find by their numbers."""


def attempt_number(index: int) -> Found:
    """Do all that is to be done with a file of the list."""
    return attempt(CASES[index])


def main(files: int = 1200, jobs: int = 2) -> None:
    """Print a table and write it beside this file."""
    torch.set_num_threads(1)
    table = ["| bomb | verdict | CPU seconds | MiB |", "|-|-|-:|-:|"]
    kinds: dict[str, list[Found]] = {}
    others = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        best, images = originals(folder)
        CASES.extend(bombs(folder))
        CASES.extend(descriptions(folder, best, images, files))
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            for case, found in zip(CASES, pool.imap(attempt_number, range(len(CASES)), chunksize=1), strict=True):
                if case.kind == "bomb":
                    table.append(f"| {case.what} | {found.verdict} | {found.seconds:.2f} | {found.memory:.0f} |")
                else:
                    kinds.setdefault(case.kind, []).append(found)
                if found.verdict not in ("right", "refused") or (case.kind == "bomb" and found.verdict == "right"):
                    others.append(f"{case.kind}, {case.what}: {found.verdict} {found.told}")
                    print(others[-1], flush=True)
    table += ["", "| descriptions | files | refused in one line | right | other | most CPU seconds | most MiB |"]
    table.append("|-|-:|-:|-:|-:|-:|-:|")
    for kind, found in kinds.items():
        counts = Counter(one.verdict for one in found)
        other = len(found) - counts["refused"] - counts["right"]
        slowest, most = max(one.seconds for one in found), max(one.memory for one in found)
        numbers = f"{len(found)} | {counts['refused']} | {counts['right']} | {other}"
        table.append(f"| {kind} | {numbers} | {slowest:.1f} | {most:.0f} |")
    notes = [
        f"one process a file, which may take {SECONDS} s of processors, and {MEMORY // 2**30} GiB beside what it began "
        "with",
        "right: the model loads and answers, and the command line evaluates, predicts or exports with status 0",
        "descriptions are put through load_model, evaluate and predict, each third through export --format "
        "torchscript; exported ones through predict and evaluate, damaged ones through predict, lists of parts through "
        "verify and predict, indices of shards through verify and evaluate",
        "with a digest, every file has to be refused",
        "seconds are those of processors and MiB those of the peak, as other programs ran on the machine at the same "
        "time and lengthen the clock's seconds",
        "seed 17",
    ]
    if others:
        table += ["", "Other outcomes:", "", *(f"- {' '.join(other.split())[:400]}" for other in others)]
    publish("hostile", "Hostile files", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
