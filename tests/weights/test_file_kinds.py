"""Files that are no weights, each refused with what they are and what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from support.weight_files import opened, tiny
from vitrail.errors import CheckpointError
from vitrail.weights.formats.file_kinds import explain_other_kind
from vitrail.weights.loading import open_model

TNT = "tnt_s_patch16_224"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 95000000\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Google Drive - Virus scan warning</title>"
DENIED = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'


def zipped(**contents: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("tnt_s.pth")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"abcd"))
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(3), b=np.ones(2))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array({"a": np.ones(3)}, dtype=object), allow_pickle=True)
    return file.getvalue()


def of_torch(*, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save({"norm.bias": torch.zeros(10_000)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


KINDS = {
    "empty": (b"", "a.pth", "is empty: the download or the save did not finish; get it again"),
    "git lfs": (LFS, "a.pth", "is a pointer of Git LFS, not the file; fetch it with `git lfs pull`"),
    "web page": (
        PAGE,
        "a.pth",
        "is a web page: an address that was not the file's was saved instead of it; download it",
    ),
    "denied": (DENIED, "a.pth", "is XML, such as a server's refusal: an address that was not the file's was saved"),
    "json": (b'{"message":{"a": 1}}', "a.pth", "is JSON, such as a server's refusal or a configuration, not weights"),
    "json with a brace at nine": (b'{"data":{"a": 1}}', "a.pth", "is JSON, such as a server's refusal"),
    "index": (
        b'{"weight_map": {}}',
        "model.safetensors.index.json",
        "is a list of the parts that the weights were cut",
    ),
    "text": (b"Not Found\x0a", "a.pth", "is text that begins 'Not Found', not weights; readable are safetensors"),
    "escapes": ("Not \u202e\u200b Found".encode(), "a.pth", r"is text that begins 'Not \?\? Found'|is no weight file"),
    "gzip": (gzip.compress(of_torch()), "a.pth.gz", "is packed with gzip; unpack it and give the file that is in it"),
    "xz": (lzma.compress(of_torch()), "a.pth", "is packed with xz; unpack it"),
    "bzip2": (bz2.compress(of_torch()), "a.pth", "is packed with bzip2; unpack it"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "a.pth.zst", "is packed with zstd; unpack it"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a.pth", "is a 7z archive; unpack it"),
    "tar": (
        tarred(),
        "a.pth.tar",
        r"is a tar archive \(a \.pth\.tar of torch\.save is none, whatever its name\); unpack it",
    ),
    "zip of weights": (
        zipped(**{"tnt_s_pth": b"a", "readme": b"b"}),
        "a.zip",
        "is a zip archive that torch.save did not write",
    ),
    "zip of one": (
        zipped(**{"tnt/tnt_s.pth": b"a", "README": b"b"}),
        "a.pth",
        "is a zip archive that holds tnt/tnt_s.pth; u",
    ),
    "zip of a whole one": (
        zipped(**{"a.pth": of_torch()}),
        "b.pth",
        r"is a zip archive that holds a\.pth; unpack it and give that file",
    ),
    "zip of two": (
        zipped(**{"a.pth": b"a", "b.ckpt": b"b"}),
        "a.zip",
        r"did not write \(it holds a\.pth, b\.ckpt\); give",
    ),
    "npz": (
        arrays(),
        "a.npz",
        r"is an archive of NumPy arrays \(\.npz\); save them by name as tensors instead: torch\.save",
    ),
    "npy": (array(), "a.npy", r"is one NumPy array \(\.npy\); save the model's state_dict\(\) with torch\.save"),
    "keras": (
        b"\x89HDF\r\n\x1a\n" + bytes(50),
        "a.h5",
        "is HDF5, as Keras writes it; only weights of PyTorch and MindSpore",
    ),
    "keras 3": (
        zipped(**{"config.json": b"{}", "model.weights.h5": b"a"}),
        "a.keras",
        "is a model of Keras; only weights",
    ),
    "pt2": (
        zipped(**{"a/archive_format": b"pt2", "a/models/model.json": b"{}"}),
        "a.pt",
        r"is an exported program .*\.pt2",
    ),
    "tensorflow": (
        b"\x00" * 90,
        "model.ckpt.data-00000-of-00001",
        "is a checkpoint of TensorFlow; only weights of PyTorch",
    ),
    "frozen": (b"\x0a\x20abc" + bytes(90), "graph.pb", "is a model of TensorFlow; only weights of PyTorch"),
    "tflite": (
        b"\x1c\x00\x00\x00TFL3" + bytes(90),
        "a.tflite",
        "is a model of TensorFlow Lite; only weights of PyTorch",
    ),
    "onnx": (
        b"\x08\x07\x12\x07pytorch" + bytes(90),
        "a.onnx",
        "is an ONNX model, a program and not weights; readable are",
    ),
    "openvino": (DENIED, "a.xml", "is an OpenVINO model, a program and not weights; readable are"),
    "mindir": (b"\x0a\x051.0.0" + bytes(90), "a.mindir", "is a MindIR model, a program and not weights; readable are"),
    "gguf": (b"GGUF\x03\x00\x00\x00" + bytes(90), "a.gguf", "is GGUF, which holds language models"),
    "image": (b"\xff\xd8\xff\xe0" + bytes(90), "a.jpg", "is a JPEG image; the weight file comes before the images"),
    "cut zip": (
        of_torch()[:20_000],
        "a.pth",
        "is cut off: its end, with the list of its contents, is missing; copy or",
    ),
    "cut legacy": (
        of_torch(zipped=False)[:-4],
        "a.pth",
        "is cut off: it ends before its tensors do; copy or download it again",
    ),
    "cut pickle": (
        pickle.dumps({"a": np.ones(100)})[:100],
        "a.pkl",
        "cannot be read: its description is damaged or cut off",
    ),
    "newer pickle": (b"\x80\x09N.", "a.pth", "is a pickle of protocol 9, newer than any known here"),
    "noise": (
        bytes(range(1, 90)) * 3,
        "a.pth",
        "is no weight file, or is damaged; readable are safetensors, PyTorch's",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_is_instead_is_said(kind: str, tmp_path: Path) -> None:
    content, name, message = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


def test_checkpoint_of_many_processes_is_to_be_joined(tmp_path: Path) -> None:
    (tmp_path / "__0_0.distcp").write_bytes(b"a")
    with pytest.raises(CheckpointError, match=r"is a checkpoint of many processes; .* dcp_to_torch .* weights\.pth"):
        open_model(tmp_path)


def test_safetensors_whose_first_bytes_are_of_gzip_are_read(tmp_path: Path) -> None:
    weights, path = tiny("twins_svt_small").state_dict(), tmp_path / "a.safetensors"
    safetensors.torch.save_file(weights, path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    wanted = 0x8B1F + (0x10000 if length > 0x8B1F else 0)
    safetensors.torch.save_file(
        weights, path, {"padding": "x" * (wanted - length - len('"__metadata__":{"padding":""},'))}
    )
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip().ljust(wanted)
    path.write_bytes(wanted.to_bytes(8, "little") + header + data[8 + length :])
    assert explain_other_kind(path, path.read_bytes()[:512]) is not None
    assert opened(path, "twins_svt_small").weights.keys() == weights.keys()
