"""Whether files are as they were written, by what they and their names say."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from support.commands import refused
from vitrail.cli.app import main
from vitrail.errors import CheckpointError
from vitrail.inference.verify import read_parts, verify
from vitrail.weights.digest import DIGESTS

WEIGHTS = {"a": torch.arange(600.0).reshape(2, 300), "b": torch.ones(300)}


def flip(path: Path, at: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_weight_file_of_ours_is_known_by_its_digest(tiny_checkpoint: Path) -> None:
    found = verify(tiny_checkpoint)
    assert (found.verdict, found.by, found.kind) == ("as written", "its digest", "weights")
    flip(tiny_checkpoint)
    found = verify(tiny_checkpoint)
    assert (found.verdict, found.is_whole) == ("refused", False)
    assert found.by.startswith("is damaged: it is not what its digest was made of; copy it again")


def test_an_archive_is_known_by_its_checksums_and_others_by_nothing(tmp_path: Path) -> None:
    archive, plain, old = tmp_path / "a.pth", tmp_path / "a.safetensors", tmp_path / "old.pth"
    torch.save({"state_dict": WEIGHTS}, archive)
    safetensors.torch.save_file(WEIGHTS, plain)
    torch.save(WEIGHTS, old, _use_new_zipfile_serialization=False)
    assert verify(archive).verdict == "as written"
    assert verify(archive).by.startswith("the checksums of its ")
    for path in (plain, old):
        assert verify(path).verdict == "cannot be told"
        assert verify(path).by == "its structure is whole, and it has neither digest nor checksums"
    data = archive.read_bytes()
    flip(archive, data.index(WEIGHTS["a"].numpy().tobytes()))
    assert "does not have its checksum; copy it again" in verify(archive).by
    for path in (plain, old):
        path.write_bytes(path.read_bytes()[:-100])
        assert verify(path).is_whole is False


@pytest.mark.parametrize("name", ["tnt-small_3rdparty_in1k_20210903-{}.pth", "update-00000012.{}.pt", "x-{}.pth.tar"])
def test_a_hash_in_a_name_is_looked_at(tmp_path: Path, name: str) -> None:
    plain = tmp_path / "a.pth"
    digest = "0" * 64
    while digest[:8].isdigit():  # which might be a date; the old format holds addresses, and is never the same
        torch.save({**WEIGHTS, "more": torch.rand(1)}, plain, _use_new_zipfile_serialization=False)
        digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    digits = 16 if "update" in name else 8
    path = plain.rename(tmp_path / name.format(digest[:digits]))
    assert (verify(path).verdict, verify(path).by) == ("as written", "the SHA-256 in its name")
    flip(path)
    assert verify(path).by.startswith(f"its SHA-256 does not begin with {digest[:digits]}, as its name says; copy")


def test_digits_in_a_name_may_be_something_else(tmp_path: Path, tiny_checkpoint: Path) -> None:
    plain = tmp_path / "a-20260903.pth"
    torch.save(WEIGHTS, plain, _use_new_zipfile_serialization=False)
    assert verify(plain).verdict == "cannot be told"
    commit = tiny_checkpoint.rename(tmp_path / "best-3fab4760.safetensors")
    assert verify(commit).by == "its digest; its name holds another hash than its SHA-256"
    assert verify(commit).verdict == "as written"


def test_a_file_in_the_cache_of_the_hub_is_known_by_its_blob(tmp_path: Path) -> None:
    data = safetensors.torch.save(WEIGHTS)
    blob = tmp_path / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir()
    blob.write_bytes(data)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert verify(link).by == "the SHA-256 in its name"
    flip(blob)
    assert verify(link).is_whole is False


def cut(folder: Path, parts: dict[str, dict[str, torch.Tensor]], index: Any = None) -> Path:
    """Write a model in parts, and the list of them."""
    for name, weights in parts.items():
        safetensors.torch.save_file(weights, folder / name)
    path = folder / "model.safetensors.index.json"
    known = {name: part for part, weights in parts.items() for name in weights}
    path.write_text(json.dumps({"metadata": {"total_size": 3600}, "weight_map": known} if index is None else index))
    return path


def test_the_parts_of_a_model_are_there_and_hold_what_their_list_says(tmp_path: Path) -> None:
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    parts = {one: {"a": WEIGHTS["a"]}, two: {"b": WEIGHTS["b"]}}
    path = cut(tmp_path, parts)
    assert (verify(path).verdict, verify(path).kind) == ("cannot be told", "parts")
    assert read_parts(path) == {"a": one, "b": two}
    cut(tmp_path, {**parts, two: {"c": WEIGHTS["b"]}}, {"weight_map": {"a": one, "b": two}})
    assert verify(path).by == f"{two} lacks 1 of its weights, such as b"
    cut(tmp_path, {**parts, two: WEIGHTS}, {"weight_map": {"a": one, "b": two}})
    assert verify(path).by == f"{two} holds 1 weights that are said to be elsewhere, such as a"
    (tmp_path / two).unlink()
    assert verify(path).by == f"its part {two} is not beside it; copy it there"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ("[]", "list indices must be integers"),
        ("5", "is not subscriptable"),
        ('{"a": 1}', "it has no 'weight_map'"),
        ('{"weight_map": []}', "weight_map names no weight"),
        ('{"weight_map": {}}', "weight_map names no weight"),
        ('{"weight_map": {"a": 5}}', "a is in '5', which is no name of a file beside the list"),
        ('{"weight_map": {"a": null}}', "a is in 'None', which is no name of a file"),
        ('{"weight_map": {"a": ["b"]}}', "which is no name of a file"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "'../b.safetensors', which is no name of a file beside the list"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd', which is no name of a file"),
        ('{"weight_map": {"a": "..\\\\b"}}', "which is no name of a file"),
        ('{"weight_map": {"a": ".."}}', "'..', which is no name of a file"),
        ('{"weight_map": {"a": ""}}', "'', which is no name of a file"),
        ('{"weight_map": {"a": "b\\u0000"}}', "which no file is called"),
        ('{"weight_map": {"a": "b\\ud800"}}', "which no file is called"),
        ('{"weight_map": {"a": "b", "a": "c"}}', "it names 'a' twice"),
        ('{"weight_map": {"a": "b"}, "metadata": {"total_size": ' + "9" * 5000 + "}}", "Exceeds the limit"),
        ('{"weight_map": ' + "[" * 100_000, "lists within lists without end"),
        ("\ufeff{}", "it has no 'weight_map'"),
    ],
)
def test_a_damaged_list_of_parts_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match="is no list of the parts of a model") as caught:
        read_parts(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert verify(path).is_whole is False


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "zero.index.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.index.json")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "zero.pt2").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.xml"))
    (tmp_path / "broken.pth").symlink_to("nowhere")
    paths = [*tmp_path.iterdir(), tmp_path / "gone.pth", tmp_path / "gone.index.json", tmp_path / ("x" * 300)]
    for path in paths:
        assert verify(path).is_whole is False, path
    assert "no regular file" in verify(tmp_path / "pipe.index.json").by


def test_a_large_list_is_not_read(tmp_path: Path) -> None:
    with (path := tmp_path / "a.index.json").open("wb") as file:
        file.truncate(2**40)  # of nothing, which takes no space
    assert verify(path).by == "cannot be read (has 1,099,511,627,776 bytes, and 16,777,216 are the most)"


def test_the_index_of_shards_is_compared_with_them(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["pack", f"data.root={image_folder}", "--output", str(tmp_path / "packed")])
    index = tmp_path / "packed" / "vitrail-index.safetensors"
    assert verify(index).verdict == "as written"
    flip(next((tmp_path / "packed").glob("*.tar")))
    assert "is not as it was packed, by its SHA-256; copy it again" in verify(index).by
    safetensors.numpy.save_file({"a": np.zeros(3)}, index)
    assert "is no manifest, or damaged" in verify(index).by


def test_the_command_shows_each_file_and_ends_with_the_first_that_is_damaged(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tiny_checkpoint)])
    shown = capsys.readouterr()
    assert (ended.value.code, shown.err) == (0, "")
    assert [word in shown.out for word in (str(tiny_checkpoint), "as written", "its digest")] == [True] * 3
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(tiny_checkpoint.read_bytes())
    flip(bad)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(tiny_checkpoint), str(bad)])
    shown = capsys.readouterr()
    assert ended.value.code == 2
    assert shown.err.startswith("error: 1 of 2 files are damaged, or nothing that is known here, the first is ")
    assert f"{bad}: is damaged" in shown.err
    assert shown.err.count("\n") == 1
    assert DIGESTS[0] in shown.err
    with pytest.raises(SystemExit) as ended:
        main(["verify"])
    assert "verify needs files, such as runs/digits/best.safetensors" in capsys.readouterr().err


def test_nothing_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (sys.exit, (7,))

    torch.save({"a": WEIGHTS["a"], "b": Bomb()}, tmp_path / "a.pth")
    found = verify(tmp_path / "a.pth")  # which would end this process
    assert found.is_whole is False
    assert "exit" in found.by


def test_what_is_not_there_or_no_file_is_not_called_damaged(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    os.mkfifo(pipe := tmp_path / "a.onnx")
    gone = tmp_path / "gone.pth"
    assert (verify(gone).by, verify(gone).kind) == ("is missing; give the file itself", "no file")
    assert verify(pipe).by == "is a pipe, no regular file; give the file itself"
    said = refused(capsys, "verify", tiny_checkpoint, gone, pipe)
    assert (
        said == f"error: 2 of 3 files are not there, or no files, the first is {gone}: is missing; give the file itself"
    )
