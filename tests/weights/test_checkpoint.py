"""Weight files: exact round trips, refusal of everything that is not one, and writing that is whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import signal
import struct
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files import write_whole
from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel
from vitrail.models.registry import FAMILIES, create_model, find_variant
from vitrail.weights.checkpoint import (
    KEY,
    Record,
    hash_classes,
    load_weights,
    model_options,
    parse_record,
    provenance,
    save_model,
)
from vitrail.weights.formats.weight_file import open_weights
from vitrail.weights.loading import load_model, open_model

LargestFile = Callable[[int], AbstractContextManager[None]]
CLASSES = ("tench", "goldfish, Carassius auratus", "größer", "猫", "e", "f", "")


def distinct_names() -> list[str]:
    """Return the variants whose tiny twins differ."""
    found = {}
    for family in FAMILIES:
        for name, variant in family.variants.items():
            found.setdefault(dataclasses.replace(variant.config, **family.tiny), name)
    return list(found.values())


every_tiny = pytest.mark.parametrize("name", distinct_names())


def tiny(name: str, seed: int = 0, **overrides: Any) -> VisionModel:
    torch.manual_seed(seed)
    return create_model(name, **{**find_variant(name)[0].tiny, **overrides})


def read_record(path: Path) -> Record:
    return open_model(path).record


def record_of(name: str, model: VisionModel, **fields: Any) -> Record:
    described = {"classes": CLASSES, "preprocess": Preprocess(size=model.config.size)} | fields
    return Record(model=name, options=model_options(model), **described)


def rewrite(path: Path, **changes: Any) -> None:
    """Change what a weight file says of itself; None removes an entry."""
    with safetensors.safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()[KEY])
    content = {name: value for name, value in (content | changes).items() if value is not None}
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {KEY: json.dumps(content)})


def header_size(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return the weight file of a tiny TNT."""
    model = tiny("tnt_s_patch16_224")
    path = tmp_path / "best.safetensors"
    save_model(path, model.state_dict(), record_of("tnt_s_patch16_224", model))
    return path


@every_tiny
def test_loaded_model_is_the_saved_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = tiny(name, drop_path_rate=0.1).eval()
    preprocess = Preprocess(
        size=model.config.size, crop=0.95, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3, exif="apply"
    )
    path = tmp_path / "best.safetensors"
    save_model(path, model.state_dict(), record_of(name, model, preprocess=preprocess))
    with torch.random.fork_rng():
        torch.manual_seed(5)
        loaded = load_model(path)
    saved = model.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in loaded.state_dict().items())
    assert {key: p.requires_grad for key, p in loaded.named_parameters()} == {
        key: p.requires_grad for key, p in model.named_parameters()
    }
    assert loaded.config == model.config
    assert loaded.classes == CLASSES
    assert loaded.preprocess == preprocess
    assert not loaded.training
    images = torch.randn(2, 3, *model.config.size)
    assert torch.equal(loaded(images), model(images))


@every_tiny
def test_loaded_model_can_be_trained_on(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    save_model(tmp_path / "a.safetensors", model.state_dict(), record_of(name, model))
    loaded = load_model(tmp_path / "a.safetensors").train()
    loaded(torch.randn(2, 3, *model.config.size)).sum().backward()
    for parameter in loaded.parameters():
        assert (parameter.grad is not None) is parameter.requires_grad


def test_channels_last_and_sliced_weights_are_written_as_they_are(tmp_path: Path) -> None:
    model = tiny("twins_svt_small").to(memory_format=torch.channels_last)
    wide = {name: torch.stack([tensor, tensor], -1)[..., 0] for name, tensor in model.state_dict().items()}
    for number, state in enumerate((model.state_dict(), wide)):
        path = tmp_path / f"{number}.safetensors"
        save_model(path, state, record_of("twins_svt_small", model))
        loaded = load_model(path).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_record_is_plain_json_and_reads_back_without_the_weights(tmp_path: Path) -> None:
    model = tiny("twins_pcpvt_small", image_size=(64, 96))
    given = record_of(
        "twins_pcpvt_small",
        model,
        recipe={"optim": {"lr": 1e-3, "betas": [0.9, 0.999]}},
        provenance=provenance(),
        metrics={"val_top1": 81.25, "epoch": 3},
    )
    path = tmp_path / "best.safetensors"
    save_model(path, model.state_dict(), given)
    data = path.read_bytes()
    header = json.loads(data[8 : header_size(data)])
    content = json.loads(header["__metadata__"][KEY])
    assert content["format"] == 1
    assert content["classes"] == list(CLASSES)
    assert content["classes_hash"] == hash_classes(CLASSES)
    assert content["preprocess"]["size"] == [64, 96]
    assert content["metrics"] == {"val_top1": 81.25, "epoch": 3}
    assert {"vitrail", "torch", "decoder", "kernels", "platform", "written"} == content["provenance"].keys()
    read = parse_record(header["__metadata__"], path)
    assert (read.model, read.classes, read.preprocess) == (given.model, given.classes, given.preprocess)
    assert (read.recipe, read.provenance, read.metrics) == (given.recipe, given.provenance, given.metrics)
    assert read.classes_hash == given.classes_hash
    assert type(model.config)(**read.options) == model.config


def test_hash_changes_with_any_name_and_with_their_order() -> None:
    hashes = {hash_classes(names) for names in (["a", "b"], ["b", "a"], ["a", "c"], ["a"], ["ab"], ["a", "b", ""])}
    assert len(hashes) == 6
    assert all(len(digits) == 16 for digits in hashes)
    assert hash_classes(["ant", "bee"]) == "dc0e4991b57dd7ec"  # the same for ever


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: the download or the save did not finish"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG image; the weight file comes before the images"),
        (b"<html>404</html>", "is a web page: "),
        (struct.pack("<Q", 2**60) + b"{}", "is not a safetensors file, or is damaged"),
        (struct.pack("<Q", 2) + b"{}", "holds no weights; its entries are none"),
    ],
    ids=["empty", "png", "html", "huge header", "no tensors"],
)
def test_other_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    for read in (read_record, load_model):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ending", "what", "how"),
    [
        (".onnx", "is an ONNX model, a program and not weights", "by their ending"),
        (".bin", "is no weight file", "by their ending, an OpenVINO model by the name of its .xml"),
    ],
)
def test_exported_files_are_sent_where_they_are_read(ending: str, what: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(b"\x08\x0a" + bytes(100))
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(caught.value) == (
        f"{path}: {what}; readable are safetensors, PyTorch's .pth and MindSpore's .ckpt; evaluate, predict, bench and "
        f"serve run exported files, {how}"
    )


def test_safetensors_that_begin_as_a_pickle_does_are_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    lengths = []
    for padding in range(0, 256, 8):  # the first byte is that of the header's length
        safetensors.torch.save_file({"head.bias": torch.ones(2)}, path, {"padding": " " * padding})
        lengths.append(path.read_bytes()[0])
        assert open_weights(path).kind == "safetensors"
    assert 0x80 in lengths


def test_missing_file_and_folder_are_refused_with_a_suggestion(weights: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"gone\.safetensors: is missing, not a weight file; give one such as runs"
    ):
        load_model(weights.with_name("gone.safetensors"))
    for name in ("best-2.safetensors", "a.longer.name.safetensors"):
        weights.with_name(name).write_bytes(weights.read_bytes())
    with pytest.raises(CheckpointError) as caught:
        load_model(weights.parent)
    assert str(caught.value) == f"{weights.parent}: is a folder, not a weight file; did you mean {weights}?"
    empty = weights.parent / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match="is a folder, not a weight file; give one such as"):
        load_model(str(empty))


def test_broken_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in ({KEY: "not json"}, {KEY: "[]"}, {KEY: "{}"}):
        safetensors.torch.save_file(tiny("tnt_s_patch16_224").state_dict(), path, metadata)
        with pytest.raises(CheckpointError, match="description of model, classes and preprocessing cannot be followed"):
            load_model(path)


def test_file_cut_anywhere_is_refused(weights: Path) -> None:
    data = weights.read_bytes()
    header = header_size(data)
    lengths = [*range(0, len(data), len(data) // 20), *range(0, header + 40, header // 20), len(data) - 1]
    for length in lengths:
        weights.write_bytes(data[:length])
        for read in (read_record, load_model):
            with pytest.raises(CheckpointError, match=r"is not a safetensors file, or is damaged|is no|is empty"):
                read(weights)


@pytest.mark.usefixtures("without_shape_checks")
def test_flipped_bytes_in_the_header_raise_checkpoint_errors_only(weights: Path) -> None:
    data = weights.read_bytes()
    generator = random.Random(0)
    refusals: list[str] = []
    for number in range(400):
        damaged = bytearray(data)
        for _ in range(1 + number % 3):
            place = generator.randrange(header_size(data))
            # half of the flips keep the JSON readable, so that they reach what is behind it
            damaged[place] = (
                generator.randrange(256) if number % 2 else ord(generator.choice('0123456789abz"{}[],:. -'))
            )
        weights.write_bytes(damaged)
        try:
            load_model(weights)
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not [refusal for refusal in refusals if "\n" in refusal]


@pytest.mark.parametrize(
    "changes",
    [
        {"classes_hash": None},
        {"classes": None},
        {"classes": "abcdefg"},
        {"classes": 7},
        {"classes": [1, 2, 3]},
        {"model": 5},
        {"model": ["tnt"]},
        {"options": []},
        {"preprocess": None},
        {"preprocess": ["size"]},
        {"preprocess": {"size": [32]}},
        {"preprocess": {"size": [32, 32], "crop": 2}},
        {"preprocess": {"size": [32, 32], "colour": 1}},
        {"recipe": []},
        {"metrics": 1.5},
        {"provenance": None},
    ],
    ids=repr,
)
@pytest.mark.usefixtures("without_shape_checks")
def test_description_with_a_wrong_entry_is_refused(changes: dict[str, Any], weights: Path) -> None:
    rewrite(weights, **changes)
    with pytest.raises(CheckpointError, match=r"description of .* cannot be followed"):
        read_record(weights)


def test_class_names_that_do_not_match_their_hash_are_refused(weights: Path) -> None:
    rewrite(weights, classes=list(reversed(CLASSES)))
    with pytest.raises(CheckpointError, match="its class names do not match their hash, so the file was changed"):
        load_model(weights)


def test_format_of_a_later_version_is_refused(weights: Path) -> None:
    rewrite(weights, format=2)
    with pytest.raises(CheckpointError, match="is of format 2, this vitrail reads format 1; upgrade vitrail"):
        load_model(weights)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "tnt_s_patch16_225"}, "did you mean 'tnt_s_patch16_224'"),
        ({"model": "resnet50"}, "unknown model 'resnet50'"),
        ({"options": {"depth": 2, "depht": 3}}, "depht"),
        ({"options": {"embed_dim": 47, "num_heads": 3}}, "47"),
    ],
)
def test_model_that_cannot_be_built_is_named(changes: dict[str, Any], message: str, weights: Path) -> None:
    rewrite(weights, **changes)
    with pytest.raises(CheckpointError, match="cannot be followed") as caught:
        load_model(weights)
    assert message in str(caught.value)


def changed(state: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    changes = {
        "missing": {"head.bias": None, "norm.bias": None},
        "unexpected": {"head.gain": torch.ones(2)},
        "shape": {"norm.weight": torch.ones(5, 48)},
        "all": {"head.bias": None, "head.gain": torch.ones(2), "norm.weight": torch.ones(5, 48)},
        "whole": {"norm.bias": torch.ones(48, dtype=torch.int32)},
    }[what]
    return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "missing",
            "does not fit the model: 2 weights missing, 0 unexpected, 0 of another shape (norm.bias, head.bias)",
        ),
        ("unexpected", "does not fit the model: 0 weights missing, 1 unexpected, 0 of another shape (head.gain)"),
        (
            "shape",
            "does not fit the model: 0 weights missing, 0 unexpected, 1 of another shape; "
            "norm.weight is (5, 48) there, (48,) here",
        ),
        (
            "all",
            "does not fit the model: 1 weights missing, 1 unexpected, 1 of another shape (head.bias, head.gain); "
            "norm.weight is (5, 48) there, (48,) here",
        ),
        ("whole", "norm.bias is torch.int32 there, torch.float32 here, so the file was changed; use the original"),
    ],
)
def test_weights_that_do_not_fit_are_named(what: str, message: str, tmp_path: Path) -> None:
    model = tiny("tnt_s_patch16_224")
    path = tmp_path / "best.safetensors"
    save_model(path, changed(model.state_dict(), what), record_of("tnt_s_patch16_224", model))
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: {message}"


def test_weights_that_do_not_fit_leave_the_model_as_it_was() -> None:
    model = tiny("tnt_s_patch16_224")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for what in ("missing", "unexpected", "shape", "whole"):
        with pytest.raises(CheckpointError):
            load_weights(model, changed(tiny("tnt_s_patch16_224", seed=1).state_dict(), what), "other.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_half_precision_weights_are_loaded_as_they_are(tmp_path: Path) -> None:
    model = tiny("tnt_s_patch16_224").bfloat16()
    save_model(tmp_path / "a.safetensors", model.state_dict(), record_of("tnt_s_patch16_224", model))
    loaded = load_model(tmp_path / "a.safetensors").state_dict()
    assert all(tensor.dtype == torch.bfloat16 for tensor in loaded.values())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.items())


def test_pickle_given_as_weights_is_refused_and_does_not_run(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "best.safetensors"
    torch.save({"model": Payload(made)}, path)
    for read in (read_record, load_model):
        with pytest.raises(CheckpointError, match=r"asks to run posix\.mkdir, .* save its state_dict\(\) alone"):
            read(path)
    assert not made.exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert made.is_dir(), "the pickle would have run"


def test_full_disk_leaves_the_old_file_and_no_other(weights: Path, largest_file: LargestFile) -> None:
    old = weights.read_bytes()
    model = tiny("tnt_s_patch16_224", seed=1)
    with largest_file(100_000), pytest.raises(CheckpointError) as caught:
        save_model(weights, model.state_dict(), record_of("tnt_s_patch16_224", model))
    assert str(caught.value) == (
        f"{weights}: cannot be written (File too large); the file of that name is as it was; "
        "free space or choose another output.root"
    )
    assert weights.read_bytes() == old
    assert list(weights.parent.iterdir()) == [weights]


def test_links_are_followed_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", b"through")
    assert os.read(reader, 99) == b"through"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    write_whole(Path("/dev/null"), b"away")
    assert Path("/dev/null").is_char_device()


def test_pieces_are_written_in_their_order(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", iter([b"one ", memoryview(b"two "), bytearray(b"three")]))
    assert (tmp_path / "a").read_bytes() == b"one two three"


def test_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be written \(Not a directory\); free space or choose"):
        write_whole(tmp_path / "file" / "best.pt", b"1")
    with pytest.raises(CheckpointError, match=r"best\.pt: cannot be written \(No such file or directory\)"):
        write_whole(tmp_path / "gone" / "best.pt", b"1")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"folder\.pt: cannot be written \(Is a directory\)"):
        write_whole(tmp_path / "folder.pt", b"1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.pt"]


def start_writer(path: Path) -> int:
    """Fork a process that writes the file over and over, each time full of another byte."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside pytest-xdist's threads
        pid = os.fork()
    if pid == 0:
        try:
            for number in itertools.count():
                write_whole(path, bytes([number % 256]) * 2_000_000)
        finally:
            os._exit(1)
    return pid


@pytest.mark.thorough
def test_process_killed_while_writing_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    write_whole(path, bytes(2_000_000))
    generator = random.Random(0)
    seen, unfinished = set(), 0
    for _ in range(40):
        pid = start_writer(path)
        time.sleep(generator.uniform(0.01, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        data = path.read_bytes()
        assert len(data) == data.count(data[0]) == 2_000_000
        seen.add(data[0])
        for temporary in tmp_path.glob(".*.tmp"):
            unfinished += 1
            temporary.unlink()
    assert len(seen) > 1, "the file was replaced"
    assert unfinished, "some writes were cut half way"
