"""See on one GPU that everything works and what it costs: at most 8 minutes, nothing downloaded.

uv run python benchmarks/gpu.py
uv run python benchmarks/gpu.py --minutes 3 --steps bodies --steps amp
uv run python benchmarks/gpu.py --device cpu --small      # a rehearsal without a GPU, which writes no page

Each step is a process of its own with a limit of time, and the page is written after each, so that a run that is cut
off still counts, and what fails stops nothing else. Accuracy is no subject here: sets are small, runs are short.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cyclopts
import torch
from side_by_side import alternate, publish, speed_up, train_command

import vitrail

FAMILIES = ("tnt_ti_patch16_224", "t2t_vit_7", "twins_svt_small")
TIMED = ("tnt_s_patch16_224", "t2t_vit_14", "t2t_vit_t_14", "twins_svt_small")
MEASURE = "deit_small_patch16_224"
Rows = list[str]


# What works


def bodies(device: str, small: bool, folder: Path) -> Rows:
    """Compare each body of the word block on the device with the plain one in double precision."""
    from vitrail.kernels.prepare import prepare_kernels
    from vitrail.kernels.word_block import choose_body, word_block
    from vitrail.kernels.word_block_compiled import NAME
    from vitrail.kernels.word_block_plain import plain_word_block

    prepare_kernels((NAME,), device, print)
    rows = []
    for n, p, e, heads, hidden in ((97, 16, 24, 4, 96), (50, 16, 12, 2, 48), (33, 16, 40, 4, 160)):
        sizes = ((e,), (e,), (2 * e, e), (e, e), (e, e), (e,), (e,), (e,), (hidden, e), (hidden,), (e, hidden), (e,))
        torch.manual_seed(0)
        weights = [(0.3 * torch.randn(size)).to(device) for size in sizes]
        words, grad = torch.randn(2, n, p, e, device=device)
        keep = (torch.rand(2, n, device=device) > 0.3) / 0.7
        exact = [one.double().cpu().requires_grad_() for one in (words, *weights)]
        right = plain_word_block(exact[0], keep.cpu(), exact[1:], heads, 1e-5, "none")
        right_grads = torch.autograd.grad(right, exact, grad.double().cpu())
        for dtype, products in ((torch.float32, "float32"), (torch.float32, "bfloat16"), (torch.bfloat16, "bfloat16")):
            inputs = [words.to(dtype).requires_grad_(), *(one.clone().requires_grad_() for one in weights)]
            found = word_block(inputs[0], keep, inputs[1:], heads, 1e-5, "none", products)
            grads = torch.autograd.grad(found, inputs, grad.to(dtype))
            again = word_block(inputs[0], keep, inputs[1:], heads, 1e-5, "none", products)
            worst = max(map(share, [found, *grads], [right, *right_grads]))
            name = choose_body(device, dtype, p)
            allowed = 1e-5 if (dtype, products) == (torch.float32, "float32") else 5e-2
            verdict = "right" if worst <= allowed and torch.equal(found, again) else "WRONG"
            rows.append(f"word_block, {e} channels, {dtype} words, {products} products: {name}, {worst:.1e}, {verdict}")
    return rows


def share(found: torch.Tensor, right: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest number."""
    return float((found.detach().double().cpu() - right.detach()).abs().max() / right.detach().abs().max())


def amp(device: str, small: bool, folder: Path) -> Rows:
    """Train each family for 50 updates in float16 and bfloat16 and see that the loss falls."""
    rows = []
    for name in FAMILIES:
        for precision in ("bfloat16",) if device == "cpu" else ("float16", "bfloat16"):
            run = train(folder, device, small, name, {"train.precision": precision})
            losses = [row["train_loss"] for row in run.rows]
            skipped = sum(row["skipped"] for row in run.rows)
            verdict = "right" if losses[-1] < losses[0] else "WRONG"
            rows.append(f"{name}, {precision}: loss {losses[0]:.2f} to {losses[-1]:.2f}, {skipped} skipped, {verdict}")
    return rows


def train(folder: Path, device: str, small: bool, name: str, more: dict[str, Any]) -> Any:
    """Train a model on digits for about 50 updates."""
    settings = {
        "model.name": name,
        "model.options": {},
        "model.image_size": 32 if small else 224,
        "data.workers": 0,
        "train.device": wanted(device),
        "train.epochs": 3,
        "train.batch_size": 96,
        "schedule.warmup_epochs": 0,
        "optim.lr": 5e-4,
        "output.root": folder,
        "augment.mixup": 0.2,
        "ema.decay": 0.9,
        **more,
    }
    if small:
        settings["model.name"] = "tnt_ti_patch16_224"
    return vitrail.train("digits", settings)


def resume(device: str, small: bool, folder: Path) -> Rows:
    """Stop a run and resume it, and see that it ends with the weights of one that was not stopped."""
    from safetensors.torch import load_file

    common = ["digits", f"output.root={folder}", "train.epochs=3", "data.workers=0", f"train.device={wanted(device)}"]
    for words in (
        [*common, "output.name=whole"],
        [*common, "output.name=stopped", "train.max_hours=0.0005"],
        ["--resume", str(folder / "stopped"), "train.max_hours=null"],
    ):
        done = subprocess.run(train_command(1, *words), capture_output=True, text=True, check=False)
        if done.returncode not in (0, 75):
            return [f"failed, WRONG: {done.stderr.strip()[-300:]}"]
    one, other = (load_file(folder / name / "best.safetensors") for name in ("whole", "stopped"))
    is_equal = all(torch.equal(one[name], other[name]) for name in one)
    return [f"stopped and resumed: {'equal to the last bit, right' if is_equal else 'differs, WRONG'}"]


def wanted(device: str) -> str:
    """Return the setting for a device."""
    return "cpu" if device == "cpu" else "auto"


def processes(device: str, small: bool, folder: Path) -> Rows:
    """Train by DDP and by sharding with torchrun on one process, as on many."""
    rows = []
    for what, extra in (("DDP", []), ("FSDP2", ["train.shard=true"])):
        words = ["digits", f"output.root={folder}", f"output.name={what}", "train.epochs=1", *extra]
        words += [f"train.device={wanted(device)}", "schedule.warmup_epochs=0", "data.workers=0"]
        torchrun = ["torch.distributed.run", "--nproc-per-node", "1", "--standalone", "-m", "vitrail", "train"]
        command = [sys.executable, "-m", *torchrun, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        verdict = "right" if done.returncode == 0 else f"WRONG: {done.stderr[-300:]}"
        rows.append(f"{what}, torchrun with one process: {verdict}")
    return rows


def compiled(device: str, small: bool, folder: Path) -> Rows:
    """Compile each family for training and compare its loss with eager."""
    from vitrail.models.registry import create_model

    rows = []
    for name in FAMILIES[:1] if small else FAMILIES:
        torch.manual_seed(0)
        model = create_model(name, num_classes=10).to(device).eval()
        images = torch.randn(4, 3, 224, 224, device=device)
        right = model(images)
        begun = time.perf_counter()
        found = torch.compile(model, fullgraph=True)(images)
        found.float().logsumexp(1).mean().backward()
        worst = share(found, right.double().cpu())
        verdict = "right" if worst < 1e-2 else "WRONG"
        rows.append(f"{name}, torch.compile: {worst:.1e} after {time.perf_counter() - begun:.0f} s, {verdict}")
    return rows


def exports(device: str, small: bool, folder: Path) -> Rows:
    """Run an exported ONNX file in onnxruntime, on the device where it has a provider for it."""
    from vitrail.inference.network import open_artifact

    run = train(folder, device, True, FAMILIES[0], {"train.epochs": 1})
    vitrail.export(run.weights, format="onnx", output=folder / "model.onnx")
    network = open_artifact(folder / "model.onnx", device=device)
    weights = open_artifact(run.weights, device=device)
    images = torch.randn(4, 3, 32, 32)
    worst = share(network(images), weights(images).double().cpu())
    return [f"{network.about}, {worst:.1e}, {'right' if worst < 1e-3 else 'WRONG'}"]


# What it costs


def times(device: str, small: bool, folder: Path) -> Rows:
    """Time inference and training beside timm's, and by multiply-add beside DeiT-S, with peak memory."""
    import timm

    from vitrail.models.registry import create_model

    batch, size, rounds = (2, 224, 2) if small else (128, 224, 7)
    rows = ["", "| model | | ms | timm's, ms | speed-up | of DeiT-S | MiB | timm's, MiB |", "|-|-|-:|-:|-:|-:|-:|-:|"]
    images = torch.randn(batch, 3, size, size, device=device)
    measure = timm.create_model(MEASURE).to(device)
    for name in TIMED[:1] if small else TIMED:
        ours = create_model(name).to(device)
        theirs = timm.create_model(name).to(device) if timm.is_model(name) else None
        for training in (False, True):
            subjects = {"ours": ours, "DeiT-S": measure} | ({"timm": theirs} if theirs is not None else {})
            calls = {whose: build_call(model, images, training) for whose, model in subjects.items()}
            seconds = alternate(calls, rounds, warmups=2, device=device)
            memory = {whose: peak_memory(call, device) for whose, call in calls.items()}
            ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["DeiT-S"], strict=True))
            cells = [name, "training" if training else "inference", f"{1000 * statistics.median(seconds['ours']):.1f}"]
            if theirs is None:
                cells += ["", "", f"{ratio:.2f}", memory["ours"], ""]
            else:
                gain = speed_up(seconds["ours"], seconds["timm"])
                cells += [f"{1000 * statistics.median(seconds['timm']):.1f}", f"{gain:.2f}", f"{ratio:.2f}"]
                cells += [memory["ours"], memory["timm"]]
            rows.append("| " + " | ".join(cells) + " |")
            sys.stdout.write(json.dumps(rows) + "\n")  # what is there already, if this is cut off
            sys.stdout.flush()
    return rows


def build_call(model: torch.nn.Module, images: torch.Tensor, training: bool) -> Callable[[], None]:
    """Return a forward pass, or a forward and a backward pass, in bfloat16."""
    low = torch.autocast(images.device.type, torch.bfloat16)

    def call() -> None:
        with nullcontext() if training else torch.inference_mode(), low:
            loss = model.train(training)(images).float().logsumexp(1).mean()
        if training:
            loss.backward()
            model.zero_grad()

    return call


def peak_memory(call: Callable[[], None], device: str) -> str:
    """Return the largest memory of a call in MiB, on a GPU."""
    if device != "cuda":
        return ""
    torch.cuda.reset_peak_memory_stats()
    call()
    return f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}"


STEPS: dict[str, tuple[Callable[[str, bool, Path], Rows], int]] = {
    "bodies": (bodies, 90),
    "amp": (amp, 120),
    "times": (times, 180),
    "resume": (resume, 60),
    "processes": (processes, 60),
    "compiled": (compiled, 120),
    "exports": (exports, 60),
}
"""Each step and the seconds that it may take, the most telling first."""


def run_step(name: str, device: str, small: bool, limit: float) -> Rows:
    """Run a step in a process of its own, and return its last rows, or why there are none."""
    words = [sys.executable, __file__, "--only", name, "--device", device, *(["--small"] if small else [])]
    begun = time.perf_counter()
    cut = ""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, check=False)
        out, failure = done.stdout, "" if done.returncode == 0 else done.stderr.strip()[-600:]
    except subprocess.TimeoutExpired as error:
        out, failure = (error.stdout or b"").decode(), ""
        cut = f", cut off after {limit:.0f} s"
    found = [line for line in out.splitlines() if line.startswith("[")]
    rows = json.loads(found[-1]) if found else []
    if failure:
        rows.append(f"failed: {failure.splitlines()[-1] if failure else ''}")
    seconds = time.perf_counter() - begun
    shown = [row if row.startswith("|") or not row else f"- {row}" for row in rows]
    return ["", f"## {name}", "", f"{seconds:.0f} s{cut}", "", *shown]


def main(
    *,
    minutes: float = 8,
    device: str = "cuda",
    small: bool = False,
    steps: tuple[str, ...] = tuple(STEPS),
    only: str | None = None,
) -> None:
    """Run all steps, and write the page after each."""
    if only is not None:
        with tempfile.TemporaryDirectory() as folder:
            rows = STEPS[only][0](device, small, Path(folder))
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    end = time.monotonic() + 60 * minutes
    table: list[str] = []
    for name in steps:
        left = end - time.monotonic()
        if left < 10:
            table += ["", f"## {name}", "", "not run: no time was left"]
            continue
        table += run_step(name, device, small, min(STEPS[name][1], left))
        if device == "cuda":
            publish("gpu", "One GPU", [f"steps in order, {minutes:.0f} minutes in all at most"], table, device)
        else:
            sys.stdout.write("\n".join(table[-20:]) + "\n")


if __name__ == "__main__":
    cyclopts.run(main)
