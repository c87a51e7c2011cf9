"""MindSpore's .ckpt: the bytes that MindSpore writes, read and written; everything else refused without harm."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.mindspore_values import COMMITTED, GOLDEN, SHARED, golden_values
from vitrail.errors import CheckpointError
from vitrail.weights.formats import mindspore_ckpt as ckpt
from vitrail.weights.formats.mindspore_ckpt import CHECKSUM, TYPES, encode_ckpt, read_ckpt
from vitrail.weights.formats.protobuf import block, integer


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def encoded(values: dict[str, Tensor | str], checksum: bool = False) -> bytes:
    return b"".join(encode_ckpt(values, checksum))


def equal(found: dict[str, Tensor | str], expected: dict[str, Tensor | str]) -> bool:
    def same(a: Tensor | str, b: Tensor | str) -> bool:
        if isinstance(a, str) or isinstance(b, str):
            return a == b
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)

    return list(found) == list(expected) and all(same(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("file", "kind", "checksum"),
    [
        ("mindcv_tnt_tiny.ckpt", "mindcv", False),
        ("mindcv_tnt_tiny.crc.ckpt", "mindcv", True),
        ("zoo_tnt_tiny.ckpt", "zoo", False),
    ],
)
def test_written_bytes_are_those_that_mindspore_wrote(file: str, kind: str, checksum: bool) -> None:
    values: dict[str, Tensor | str] = {**golden_values(kind)}
    assert hashlib.sha256(encoded(values, checksum)).hexdigest() == COMMITTED["sha256"][file]


def test_every_type_that_mindspore_wrote_is_read_and_written_back() -> None:
    path = GOLDEN / "mindspore_dtypes.ckpt"
    values = read_ckpt(path)
    assert {str(v.dtype) for v in values.values() if isinstance(v, Tensor)} >= {
        "torch.bool", "torch.int8", "torch.uint8", "torch.int64", "torch.float16", "torch.float64", "torch.bfloat16",
    }  # fmt: skip
    assert values["note"] == "hello"
    scalar = values["scalar"]
    assert isinstance(scalar, Tensor)
    assert scalar.shape == ()
    assert encoded(values) == path.read_bytes()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files of MindSpore lie beside the repository")
@pytest.mark.parametrize("name", ["mindcv_tnt_tiny.train.ckpt", "zoo_tnt_tiny.train.ckpt"])
def test_training_files_of_mindspore_are_read_and_written_back(name: str) -> None:
    values = read_ckpt(SHARED / name)
    assert len(values) > 200
    assert encoded(values) == (SHARED / name).read_bytes()


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files of MindSpore lie beside the repository")
def test_encrypted_file_of_mindspore_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"it is encrypted \(AES-GCM\); decrypt it"):
        read_ckpt(SHARED / "mindcv_tnt_tiny.encrypted.ckpt")


@pytest.mark.parametrize("dtype", TYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (2, 3, 4)])
def test_every_type_and_shape_reads_back(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    values: dict[str, Tensor | str] = {"a.weight": (torch.rand(shape) * 100).to(dtype), "name": "größer 猫"}
    assert equal(read_ckpt(write(tmp_path / "a.ckpt", encoded(values))), values)


def test_strided_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    wide = torch.arange(24.0).reshape(2, 3, 4)
    values: dict[str, Tensor | str] = {"t": wide.transpose(0, 2), "s": wide[:, ::2], "e": torch.ones(1).expand(5)}
    assert equal(read_ckpt(write(tmp_path / "a.ckpt", encoded(values))), values)


def test_large_tensors_are_cut_into_slices_and_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: dict[str, Tensor | str] = {
        "a": torch.rand(7, 11),
        "b": torch.rand(3),
        "text": "x" * 100,
        "c": torch.rand(64),
    }
    whole = encoded(values)
    monkeypatch.setattr(ckpt, "SLICE", 64)
    sliced = encoded(values, checksum=True)
    assert len(sliced) > len(whole) + 100
    assert equal(read_ckpt(write(tmp_path / "a.ckpt", sliced)), values)


def test_single_number_as_mindspore_2_0_writes_it(tmp_path: Path) -> None:
    tensor = integer(1, 0) + block(2, "Float32") + block(3, b"\0\0\x80?")
    found = read_ckpt(write(tmp_path / "a.ckpt", block(1, block(1, "lr") + block(2, tensor))))["lr"]
    assert isinstance(found, Tensor)
    assert (found.shape, found.item()) == ((), 1.0)


def value(name: str, kind: str = "Float32", sizes: tuple[int, ...] = (2,), content: bytes = bytes(8)) -> bytes:
    tensor = b"".join(integer(1, size) for size in sizes) + block(2, kind) + block(3, content)
    return block(1, block(1, name) + block(2, tensor))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty; use the original"),
        (b"PK\x03\x04 a zip", "unknown field|unknown kind|ends within"),
        (value("a")[:-1], "ends within a field of"),
        (value("a", sizes=(3,)), r"has 8 bytes for a of Float32 \[3\]"),
        (value("a", sizes=(2**40, 2**40)), "has 8 bytes for a of Float32"),
        (value("a", sizes=(-2, -1)), "has 8 bytes for a of Float32"),
        (value("a", kind="Complex64"), "unknown type 'Complex64' for a"),
        (value("a", kind="str", content=b"\xff\xff\xff\xff"), "has text that is none for a"),
        (value("a") + value("b") + value("a"), "has a twice"),
        (value("a", sizes=(4,)) + value("a", sizes=(5,)), "gives slices of a other sizes or types"),
        (block(1, block(1, "t") + block(3, b"")), r"has a hash table \(maptensor\); save it without"),
        (block(1, block(1, "t")), "without a name or a tensor"),
        (block(1, block(1, "t") + block(2, block(2, "Int8"))), "has no type or no content for t"),
        (block(1, block(1, b"\xff\xfe")), "has a name that is not text"),
        (block(2, b"x"), "has an unknown field 2"),
        (block(1, integer(1, 5)), "has an unknown field 1 in a value"),
        (block(1, block(1, "t") + block(2, block(9, b""))), "has an unknown field 9 in t"),
        ((0x7F3A5ED9).to_bytes(4, "little") + bytes(40), r"is encrypted \(AES-CBC\)"),
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ckpt", data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_ckpt(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as a MindSpore checkpoint: it ")
    assert "\n" not in str(caught.value)


def test_changed_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    data = bytearray(encoded({"a.weight": torch.rand(50)}, checksum=True))
    assert data[-17:-10] == CHECKSUM
    read_ckpt(write(tmp_path / "a.ckpt", bytes(data)))
    data[100] ^= 1
    with pytest.raises(CheckpointError, match="does not match its checksum; use the original"):
        read_ckpt(write(tmp_path / "a.ckpt", bytes(data)))


def test_complex_tensor_is_not_written() -> None:
    with pytest.raises(CheckpointError, match=r"a is torch\.complex64, which MindSpore cannot hold"):
        encoded({"a": torch.zeros(2, dtype=torch.complex64)})


def test_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.ckpt: cannot be read \(No such file or directory\)"):
        read_ckpt(tmp_path / "a.ckpt")


def test_mutated_files_raise_checkpoint_errors_only(tmp_path: Path) -> None:
    data, draw, path = (
        encoded({"a.weight": torch.rand(20, 3), "n": torch.tensor(5), "t": "text"}),
        random.Random(0),
        tmp_path,
    )
    refusals = []
    for number in range(500):
        bent = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            bent[draw.randrange(len(bent))] = draw.randrange(256)
        if number % 3 == 0:
            del bent[draw.randrange(len(bent)) :]
        try:
            read_ckpt(write(path / "a.ckpt", bytes(bent)))
        except CheckpointError as error:
            refusals.append(str(error))
    assert len(refusals) > 150
    assert not [refusal for refusal in refusals if "\n" in refusal]


@pytest.mark.thorough
def test_reading_needs_memory_for_the_tensors_once(tmp_path: Path) -> None:
    values: dict[str, Tensor | str] = {f"w{n}": torch.rand(1000, 1000) for n in range(25)}
    path = write(tmp_path / "a.ckpt", encoded(values))
    code = f"""
import resource
from pathlib import Path
import vitrail.weights.formats.mindspore_ckpt
used = int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 115_000_000,) * 2)  # the file has 100,000,000 bytes
assert len(vitrail.weights.formats.mindspore_ckpt.read_ckpt(Path({str(path)!r}))) == 25
"""
    subprocess.run([sys.executable, "-c", code], check=True)
