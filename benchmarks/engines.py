"""Time each engine on whole models against PyTorch, timm and the official T2T-ViT, each in a process of its own.

    uv run python benchmarks/engines.py [MODEL ...] [--threads 2] [--rounds 10]

Every model is exported to ONNX, OpenVINO and AOTInductor, in float32 and where the machine has it in bfloat16; then all
of its files, its weights, and timm's model or the official formulation take turns. The table ends with the targets: the
best engine's speed-up over timm's eager float32, or the official formulation's, and its latency of one image, as shares
of the baseline's and of our own in PyTorch.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import cyclopts
import torch
from export import save
from official_t2t import OfficialT2TViT
from side_by_side import publish

from vitrail.choices import ExportFormat, Precision
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.display import Quiet
from vitrail.errors import VitrailError
from vitrail.inference.bench import Measured, Subject, bench, beside_timm, find_subjects
from vitrail.models.registry import create_model
from vitrail.models.t2t_vit import T2TViT
from vitrail.weights.loading import open_model

TARGETS = {"tnt_s_patch16_224": 2.2, "twins_svt_small": 3.5, "t2t_vit_14": 2.0}
"""How many times the images a second of the baseline, at a batch of 8."""
LATENCY = 0.55
"""Of one image, as a share of the baseline's."""
FILES: tuple[tuple[ExportFormat, Precision], ...] = (
    ("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16"), ("pt2", "float32"), ("pt2", "bfloat16"),
)  # fmt: skip


def official(name: str) -> OfficialT2TViT:
    """Build the official formulation of a T2T-ViT."""
    model = create_model(name)
    assert isinstance(model, T2TViT)
    return OfficialT2TViT(model)


def export_all(name: str, folder: Path) -> list[str]:
    """Write a model and every file of it that this machine can run, and return their names."""
    checkpoint = folder / f"{name}.safetensors"
    save(name, checkpoint)
    opened, written = open_model(checkpoint), [str(checkpoint)]
    sample = gather_sample(opened.record, None)
    has_bfloat16 = torch.cpu.get_capabilities()["avx512_bf16"]  # else it is emulated, many times slower
    for format, precision in FILES:
        if precision == "bfloat16" and not has_bfloat16:
            continue
        place = folder / precision
        place.mkdir(exist_ok=True)
        try:
            (path,) = find_outputs([format], checkpoint, None).values()
            (done,) = export(opened, {format: place / path.name}, sample, precision=precision)
        except VitrailError as error:
            print(f"{name} {format} {precision}: {error}", flush=True)
            continue
        assert done.is_good, done
        written.append(str(done.path))
    return written


def table(name: str, results: Sequence[Measured], baseline: str) -> list[str]:
    """Return the lines of one model, and how it stands to its targets."""
    lines, median = [], {(one.name, one.about, one.batch_size): one.p50_ms for one in results}
    base = {size: ms for (which, _, size), ms in median.items() if which == baseline}
    own = {size: ms for (which, _, size), ms in median.items() if which.endswith(".safetensors")}
    for one in results:
        gain = base[one.batch_size] / one.p50_ms
        what = Path(one.name).name if Path(one.name).is_absolute() else one.name
        cells = (what, one.about, str(one.batch_size), f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}")
        lines.append(f"| {' | '.join(cells)} | {one.images_per_s:.1f} | {one.peak_mib:.0f} | {gain:.2f} |")
    others = [key for key in median if key[0] != baseline]
    best = {size: min(median[key] for key in others if key[2] == size) for size in (1, 8)}
    lines.append(
        f"| **{name}**, best | batch 8: {base[8] / best[8]:.2f} times {baseline}, wanted {TARGETS.get(name, 1)}; batch "
        f"1: {best[1] / base[1]:.2f} of it, wanted {LATENCY}, and {best[1] / own[1]:.2f} of our PyTorch | | | | | | |"
    )
    return lines


def main(*names: str, threads: int = 2, rounds: int = 10) -> None:
    """Print all, and write a page beside this file."""
    lines: list[str] = []
    for name in names or tuple(TARGETS):
        with tempfile.TemporaryDirectory() as place:
            subjects: list[Subject] = find_subjects(export_all(name, Path(place)), threads=threads, device="cpu")
            more, lacking = beside_timm(subjects, threads=threads, device="cpu")
            if lacking:
                build = partial(official, name)
                more = [replace(subjects[0], name=f"{name}, official formulation", build=build)]
            results = bench([*subjects, *more], (1, 8), rounds, Quiet())
            lines += table(name, results, more[0].name)
            print(json.dumps([asdict(one) for one in results]), flush=True)
    columns = ("what", "run by", "batch", "p50, ms", "p99, ms", "images/s", "peak, MiB", "times the baseline")
    notes = [
        f"CPU, {threads} threads, each in a process of its own, {rounds} alternating rounds of 5 runs",
        "the baseline is timm in float32, or the official formulation, at the same batch size",
        "peak: memory of the whole process, PyTorch included",
    ]
    header = [f"| {' | '.join(columns)} |", "|-|-|-:|-:|-:|-:|-:|-:|"]
    publish("engines", "Engines beside timm and the official T2T-ViT", notes, [*header, *lines])


if __name__ == "__main__":
    cyclopts.run(main)
