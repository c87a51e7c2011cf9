"""Nothing from a weight file is run, and what is no weights is refused."""

from __future__ import annotations

import json
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from support.weight_files import save, tiny
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models.dialects import is_counter, read_names, write_names
from vitrail.models.registry import FAMILIES, create_model
from vitrail.weights.loading import load_model, open_model


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_pickle_that_would_run_is_refused_by_name(old: bool, tmp_path: Path) -> None:
    content = {"state_dict": tiny("t2t_vit_7").state_dict(), "args": Payload(tmp_path / "made")}
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"asks to run posix\.mkdir, which is no tensor or plain value"):
        open_model(path)
    assert not (tmp_path / "made").exists()


def test_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.zeros(100_000_00)})
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"is an archive that torch\.save did not write; give"):
        open_model(bomb)


def test_tensor_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.ones(1).expand(2**40)})
    with pytest.raises(CheckpointError, match=r"norm\.bias claims 1,099,511,627,776 values and has fewer"):
        open_model(path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is damaged"):
        open_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not weights by name"),
        ({"a": 1, "b": "text"}, "holds no weights; its entries are a, b"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w is a sparse, quantized or empty tensor"),
        ({"w": torch.empty(2, device="meta")}, "w is a sparse, quantized or empty tensor"),
    ],
)
def test_other_contents_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_model(save(tmp_path / "a.pth", content))


def test_every_dialect_reads_what_it_writes() -> None:
    for family in FAMILIES:
        with torch.device("meta"):
            weights = create_model(next(iter(family.variants))).state_dict()
        for dialect in family.dialects:
            links, dropped = write_names(weights, dialect)
            back, ignored, rest = read_names([key for link in links for key in link.theirs], dialect)
            counted = set() if dialect.has_counters else set(filter(is_counter, weights))
            assert {name for link in back for name in link.ours} == weights.keys() - set(dropped) - counted
            assert not ignored
            assert not rest


def test_options_of_the_architecture_cannot_be_changed_afterwards(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="was made with depth=2, which its weights cannot change"):
        load_model(tiny_checkpoint, depth=3)
    model = load_model(tiny_checkpoint, drop_path_rate=0.2, gelu="tanh")
    assert replace(model.config, drop_path_rate=0.0, gelu="erf") == load_model(tiny_checkpoint).config
    assert math.isclose(model.config.drop_path_rate, 0.2)


def test_archive_with_a_second_directory_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.zeros(10)})
    data = path.read_bytes()
    path.write_bytes(data[:-22] + bytes(64) + data[-22:])
    with pytest.raises(CheckpointError, match=r"is an archive that torch\.save did not write|cannot be read"):
        open_model(path)


def test_file_of_more_tensors_than_any_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({f"w{number}": torch.zeros(1) for number in range(20_001)}, path)
    with pytest.raises(CheckpointError, match="holds more than 20,000 tensors, and no model here has so many"):
        open_model(path)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="/dev/null: is a device, no regular file"):
        open_model("/dev/null")
    with pytest.raises(CheckpointError, match="File name too long; choose another path"):
        open_model("a" * 5000)


def test_an_archive_over_several_disks_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.zeros(2)})
    data = bytearray(path.read_bytes())
    locator = data.rindex(b"PK\x06\x07")
    data[locator + 16 : locator + 20] = (7).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth: cannot be read \(zipfiles that span multiple disks"):
        open_model(path)
