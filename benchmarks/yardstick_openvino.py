"""Time per multiply-add of our models in OpenVINO relative to DeiT-S of timm there, and beside PyTorch eager.

uv run python benchmarks/yardstick_openvino.py

All are exported by vitrail, DeiT-S by its adapter for timm, and take turns, each in a process of its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import cyclopts
import torch
from engines import save
from side_by_side import publish

from vitrail.choices import Precision
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export
from vitrail.display import Quiet
from vitrail.inference.bench import bench, find_subjects
from vitrail.kernels.prepare import describe_kernels
from vitrail.weights.loading import open_model

MEASURE = "timm:deit_small_patch16_224"
MODELS = ("tnt_s_patch16_224", "twins_svt_small", "twins_pcpvt_small", "t2t_vit_14", "t2t_vit_t_14")


def write(name: str, precision: Precision, folder: Path) -> tuple[str, str]:
    """Write the weights of a model and the OpenVINO file of a precision, and return their paths."""
    stem = folder / precision / name.replace(":", "_")
    stem.parent.mkdir(exist_ok=True)
    weights = stem.with_suffix(".safetensors")
    save(name, weights)
    opened = open_model(weights)
    sample = gather_sample(opened.record, None)
    (done,) = export(opened, {"openvino": stem.with_suffix(".xml")}, sample, precision=precision)
    assert done.is_good, done
    return str(weights), str(done.path)


def main(*models: str, batch_size: int = 8, rounds: int = 10, threads: int = 2) -> None:
    """Measure, and write a page beside this file."""
    names = models or MODELS
    table = ["| model | | OpenVINO, ms | of DeiT-S | by multiply-add | of PyTorch eager |", "|-|-|-:|-:|-:|-:|"]
    precisions: list[Precision] = ["float32"]
    if torch.cpu.get_capabilities()["avx512_bf16"]:  # else it is emulated, many times slower
        precisions.append("bfloat16")
    for precision in precisions:
        with tempfile.TemporaryDirectory() as place:
            files = {name: write(name, precision, Path(place)) for name in (MEASURE, *names)}
            subjects = []
            for weights, exported in files.values():
                eager, file = find_subjects([weights, exported], threads=threads, device="cpu")
                subjects += [replace(eager, precision=precision), file]
            found = {one.name: one for one in bench(subjects, (batch_size,), rounds, Quiet())}
            measure = found[files[MEASURE][1]]
            for name in (MEASURE, *names):
                eager, ours = (found[path] for path in files[name])
                ratio = ours.p50_ms / measure.p50_ms
                each = ratio * measure.macs / ours.macs
                cells = (name, precision, f"{ours.p50_ms:.0f}", f"{ratio:.2f}", f"{each:.2f}")
                table.append(f"| {' | '.join(cells)} | {ours.p50_ms / eager.p50_ms:.2f} |")
    notes = [
        f"batch of {batch_size}, {threads} threads, medians of {rounds} alternating rounds of 5 runs",
        f"kernels of PyTorch eager: {describe_kernels()}",
    ]
    publish("yardstick_openvino", "Time per multiply-add in OpenVINO, relative to DeiT-S", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
