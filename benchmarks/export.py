"""Export every model to every format, and publish each file's verdict as one table.

    uv run python benchmarks/export.py [MODEL ...] [--formats onnx --formats openvino ...] [--images FOLDER]

Weights are random, so spread that nothing hides in them, as trained ones would have to be fetched. The table
says what works, how far logits are off PyTorch's, and what both take in the same process, in alternating rounds. A
table of some formats is a page of its own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cyclopts
from mindir import build
from side_by_side import publish

from vitrail.choices import ExportFormat
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import Exported, export, find_outputs
from vitrail.errors import VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.models.registry import find_variant, list_models
from vitrail.weights.checkpoint import Record, model_options, save_model
from vitrail.weights.loading import open_model

FORMATS: tuple[ExportFormat, ...] = ("onnx", "openvino", "torchscript", "pt2")


def save(name: str, path: Path) -> None:
    """Write a weight file of a model."""
    model, card = build(name), find_variant(name)[1]
    record = Record(
        model=name,
        options=model_options(model),
        classes=tuple(map(str, range(model.config.num_classes))),
        preprocess=Preprocess(
            size=model.config.size, crop=card.crop, interpolation=card.interpolation, mean=card.mean, std=card.std
        ),
    )
    save_model(path, model.state_dict(), record)


def row(name: str, done: Exported) -> str:
    """Return one line of the table."""
    found = done.verdict
    assert found is not None
    times = (" / ".join(f"{1000 * seconds:.0f}" for seconds in found.seconds[size]) for size in (1, 8))
    cells = [
        name, done.format, "yes" if done.is_good else "NO", f"{found.difference:.1e}", f"{found.relative:.1e}",
        f"{found.agree} of {found.images}", *times, f"{done.bytes / 2**20:.0f}", f"{done.seconds:.0f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main(*names: str, formats: tuple[ExportFormat, ...] = FORMATS, images: Path | None = None) -> None:
    """Compare all, and write a page beside this file."""
    rows, engines, what = [], dict[str, None](), ""
    for name in names or list_models():
        with tempfile.TemporaryDirectory() as place:
            checkpoint = Path(place, "best.safetensors")
            save(name, checkpoint)
            opened = open_model(checkpoint)
            sample = gather_sample(opened.record, images)
            what = sample.what
            for format in formats:
                try:
                    (done,) = export(opened, find_outputs([format], checkpoint, None), sample)
                except VitrailError as error:
                    rows.append(f"| {name} | {format} | NO: {error} |" + " |" * 7)
                    continue
                assert done.verdict is not None
                engines[done.verdict.about] = None
                rows.append(row(name, done))
                print(rows[-1], flush=True)
    columns = (
        "model", "format", "works", "logits differ by", "of the largest", "same top-1", "batch 1, ms", "batch 8, ms",
        "MiB", "written in, s",
    )  # fmt: skip
    notes = [
        f"{what}; batches of 1, 3 and 8 from one file; random weights, the gains of norms and the biases too",
        f"run by {'; '.join(engines)}",
        "milliseconds a batch: the file's / those of PyTorch in float32, medians of 5 rounds in one process",
    ]
    header = [f"| {' | '.join(columns)} |", f"|-|-|-{'|-:' * (len(columns) - 3)}|"]
    some = [] if formats == FORMATS else formats
    publish("_".join(["export", *some]), "Exported files beside PyTorch", notes, [*header, *rows])


if __name__ == "__main__":
    cyclopts.run(main)
