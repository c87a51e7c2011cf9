"""Devices, processes and precision; what many processes do is tested where it is used (train, evaluate)."""

import platform
import subprocess
import sys

import pytest
import torch

from vitrail.devices import autocast, pick_device
from vitrail.distributed.processes import choose_precision, gather_texts, processes, sum_over_processes
from vitrail.errors import ConfigError, LostProcess


def test_a_second_run_may_have_another_precision() -> None:
    with processes("bfloat16", "cpu") as accelerator:
        assert accelerator.mixed_precision == "bf16"
    with processes("float32", "cpu") as accelerator:
        assert accelerator.mixed_precision == "no"
        assert (accelerator.device.type, accelerator.num_processes) == ("cpu", 1)


def test_the_processes_are_left_after_an_error_too() -> None:
    with pytest.raises(ZeroDivisionError), processes("bfloat16", "cpu"):
        raise ZeroDivisionError
    with processes("float32", "cpu") as accelerator:
        assert accelerator.mixed_precision == "no"


def test_float16_without_a_gpu_is_refused_with_the_alternatives() -> None:
    with pytest.raises(ConfigError, match=r"^train\.precision is float16, which needs a CUDA device; use bfloat16 or"):
        processes("float16", "cpu").__enter__()


def test_processes_that_cannot_work_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # a device of which Accelerate joins no processes, and which is not here
    monkeypatch.setattr("vitrail.distributed.processes.pick_device", lambda device: torch.device("mps"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        ConfigError, match=r"^torchrun started 2 processes, which cannot work together on \w+; start one, or add"
    ):
        processes("float32", "auto").__enter__()


def test_a_lost_process_is_one_line_and_other_errors_stay_what_they_are() -> None:
    text = "[pair.cc:547] Connection closed by peer [127.0.0.1]:1, in gloo\nmore"
    with (
        pytest.raises(
            LostProcess, match=r"^lost the other processes \(\[pair.* in gloo\); the first of them that ended"
        ),
        processes("float32", "cpu"),
    ):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="shapes"), processes("float32", "cpu"):
        raise RuntimeError("shapes differ")


def test_alone_sums_and_lists_are_those_given() -> None:
    with processes("float32", "cpu") as accelerator:
        assert torch.equal(sum_over_processes(accelerator, torch.arange(3))[0], torch.arange(3))
        assert gather_texts(accelerator, [("a.jpg", "broken")]) == [("a.jpg", "broken")]


def test_matrix_products_run_in_the_asked_precision() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert (a @ a).dtype is dtype


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_large_block_is_not_given_back_to_the_system() -> None:
    program = """
import resource, torch
from vitrail.distributed.processes import processes
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(20_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
default = min(faults() for _ in range(5))
with processes("float32", "cpu"):
    # the least, as the system may take idle memory back by itself
    print(default, min(faults() for _ in range(9)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())
    assert kept < default / 10


def test_cpu_is_taken_when_asked() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_mindspores_levels_and_mixed_mean_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("float32", "bfloat16", "float16", "O0", "mixed", "O1", "O2", "O3")
    expected = ["float32", "bfloat16", "float16", "float32", *["bfloat16"] * 4]
    assert [choose_precision(name, "cpu") for name in names] == expected
    # a card of 2018
    monkeypatch.setattr("vitrail.distributed.processes.pick_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert [choose_precision(name, "auto") for name in ("O0", "O2", "mixed")] == ["float32", "float16", "float16"]
