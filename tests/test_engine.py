"""Devices, processes and precision; what many processes do is tested where it is used (train, evaluate)."""

import platform
import subprocess
import sys

import pytest
import torch

from vitrail.engine import autocast, gather_texts, pick_device, processes, sum_over_processes
from vitrail.errors import ConfigError


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


def test_alone_sums_and_lists_are_those_given() -> None:
    with processes("float32", "cpu") as accelerator:
        assert torch.equal(sum_over_processes(accelerator, torch.arange(3))[0], torch.arange(3))
        assert gather_texts(accelerator, [("a.jpg", "broken")]) == [("a.jpg", "broken")]


def test_matrix_products_run_in_the_asked_precision() -> None:
    a = torch.ones(2, 2)
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert (a @ a).dtype is dtype


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_large_block_is_not_given_back_to_the_system() -> None:
    program = """
import resource, torch
from vitrail.engine import processes
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
