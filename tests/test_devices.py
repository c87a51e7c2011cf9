"""How much memory there is, by the files in which Linux says so; and whether a processor has bfloat16."""

import os
from pathlib import Path

import pytest
import torch

from support.runs import Notebook
from vitrail.devices import count_memory, cpu_has_bfloat16
from vitrail.training.shortage import tell_of_slow_precision

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("own", "limits", "memory"),
    [
        # version 2: the group, one above it, and a container that sees its own as the top one
        ("0::/job/step\n", {"job/step/memory.max": "3000000", "job/memory.max": "max"}, 3_000_000),
        ("0::/job/step\n", {"job/step/memory.max": "max", "job/memory.max": "2000000"}, 2_000_000),
        ("0::/docker/0123\n", {"memory.max": "1000000"}, 1_000_000),
        # version 1, beside a version 2 that limits nothing
        ("4:memory:/job\n3:cpuset:/\n0::/\n", {"memory/job/memory.limit_in_bytes": "4000000"}, 4_000_000),
        ("4:memory:/job\n", {"memory/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "9223372036854771712"}, MACHINE),
        ("0::/\n", {}, MACHINE),
        ("", {"memory.max": "1000"}, MACHINE),
    ],
)
def test_memory_is_what_the_groups_of_a_container_leave(
    tmp_path: Path, own: str, limits: dict[str, str], memory: int
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in limits.items():
        (path := tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert count_memory(tmp_path / "groups", tmp_path / "own") == memory


def test_where_there_are_no_groups_memory_is_the_machines(tmp_path: Path) -> None:
    assert count_memory(tmp_path, tmp_path / "none") == MACHINE
    assert 0 < count_memory() <= MACHINE


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False, "cpu_name": "x"}, False),
    ],
)
def test_a_processor_without_bfloat16_is_told_of(
    capabilities: dict[str, object], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert cpu_has_bfloat16() is has
    display = Notebook()
    tell_of_slow_precision("bfloat16", torch.device("cpu"), display)
    said = (
        "train.precision=bfloat16: this processor has no instructions for it and computes float32 faster; "
        "add train.precision=float32"
    )
    assert display.notes == ([] if has else [said])
    tell_of_slow_precision("float32", torch.device("cpu"), display)
    tell_of_slow_precision("bfloat16", torch.device("cuda"), display)
    assert len(display.notes) <= 1
