"""What a command found, as tables on standard output, and what to type next."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitrail.errors import command, harmless

if TYPE_CHECKING:
    from vitrail.deploy.export import Exported
    from vitrail.deploy.quantize import Quantized
    from vitrail.evaluation.evaluate import Evaluation
    from vitrail.training.train import TrainResult


def show_line(text: str) -> None:
    """Print one line, in which no name of a file or a class is obeyed by the terminal."""
    print(harmless(text))


def show_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one table; columns of numbers are aligned on the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=harmless(title) or None, title_justify="left", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        numeric = all(
            row[number].replace(",", "").replace(".", "").replace("-", "").isdigit() for row in rows if row[number]
        )
        table.add_column(harmless(column), justify="right" if numeric and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(harmless, row))
    Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def show_sweep(checkpoint: Path, tried: Sequence[Evaluation]) -> None:
    """Print what each way of reading images found, the best first."""
    rows = [
        (
            *(str(list(value)) for value in (result.preprocess.mean, result.preprocess.std)),
            f"{result.preprocess.crop:g}",
            result.preprocess.interpolation,
            *result.accuracy.shown.values(),
        )
        for result in tried
    ]
    found = tried[0].accuracy
    show_table(
        f"{checkpoint} on {found.n:,} images of {tried[0].data}, the best first",
        ("mean", "std", "crop", "interpolation", *found.shown),
        rows,
    )
    best = tried[0].preprocess
    settings = [
        f"preprocess.{name}={json.dumps(getattr(best, name), separators=(',', ':'))}"
        for name in ("mean", "std", "crop")
    ]
    words = [*settings, f"preprocess.interpolation={best.interpolation}"]
    show_line(f"next: {command('evaluate', checkpoint, *words)}")


def show_verdicts(done: Sequence[Exported], what: str) -> None:
    """Print how each file compares with PyTorch.

    Args:
        done: The files.
        what: They were compared on.
    """
    rows = []
    for one in done:
        found = one.verdict
        if found is None:
            rows.append((one.path.name, "MindSpore is not here", "", "", "", "", ""))
            continue
        times = [
            " / ".join(f"{1000 * seconds:.1f}" for seconds in found.seconds[size]) if size in found.seconds else ""
            for size in (1, 8)
        ]
        share = f"{found.relative:.1e} (up to {found.tolerance:g})"
        agree = f"{found.agree} of {found.images}"
        rows.append((one.path.name, found.about, f"{found.difference:.1e}", share, agree, *times))
    of = next((one.verdict.of for one in done if one.verdict), "logits")
    columns = ("file", "run by", f"{of} differ by", "of the largest", "same top-1", "batch 1, ms", "batch 8, ms")
    show_table(f"compared with PyTorch in float32 on {what}; times are the file's / PyTorch's", columns, rows)


def show_quantized(result: Quantized) -> None:
    """Print which layers suffer, what was tried, and what it brings."""
    worst = list(result.sensitivities.items())[:10]
    rows = [(name, f"{100 * moved:.2f}") for name, moved in worst]
    title = f"the {len(rows)} most sensitive of {result.layers} layers, {result.calibrated_on}"
    show_table(title, ("layer in 8 bits alone", "logits move by, % of their spread"), rows)
    measured = f"{result.measured_by}, %"
    rows = [
        (str(len(trial.kept)), f"{trial.measure:.2f}", f"{trial.drop:.2f}", f"{trial.bytes / 2**20:.1f}")
        for trial in result.trials
    ]
    title = f"on {result.images:,} labelled images, where the weights have {result.exact:.2f}"
    show_table(title, ("layers in float", measured, "drop, points", "MiB"), rows)
    if result.speeds:
        rows = [
            (
                one.what,
                one.about,
                f"{one.measure:.2f}",
                f"{one.bytes / 2**20:.1f}",
                f"{one.ms[1]:.1f}",
                f"{one.ms[8]:.1f}",
            )
            for one in result.speeds
        ]
        columns = ("file", "run by", measured, "MiB", "batch 1, ms", "batch 8, ms")
        show_table("accuracy, size and latency", columns, rows)


def show_training(result: TrainResult) -> None:
    """Print the best and the last epoch of a run, and where its files are."""
    best, last = result.best, result.rows[-1]
    columns = {"train_loss": "train loss", "val_loss": "val loss"}
    columns |= (
        {"val_map": "mAP, %", "val_macro_f1": "macro F1, %", "val_micro_f1": "micro F1, %"}
        if "val_map" in last
        else {"val_top1": "top-1, %", "val_top5": "top-5, %"}
    )
    groups = {f"val_{name}_top1": f"{name}, %" for name in ("head", "medium", "tail")}
    present = {key: title for key, title in groups.items() if last.get(key) is not None}
    if len(present) > 1:  # where all classes are of one group, these say little more than top-1
        columns |= {"val_balanced_accuracy": "balanced, %", "val_macro_f1": "macro F1, %", **present}
    columns.setdefault(result.monitor, result.monitor)
    rows = [
        (
            name,
            str(row["epoch"]),
            *("-" if row.get(key) is None else f"{row[key]:.{4 if 'loss' in key else 2}f}" for key in columns),
        )
        for name, row in (("best", best), ("last", last))
        if row
    ]
    show_table("", ("", "epoch", *columns.values()), rows)
    weights = result.folder / "best.safetensors"
    if result.bad_files:
        show_line(f"{len(result.bad_files)} images could not be read and were left out:")
        for name, reason in result.bad_files:
            show_line(f"  {name}: {reason}")
    show_line(f"{result.seconds:.0f} s; curves: {result.folder / 'curves.png'}")
    if result.report is not None:
        show_line(f"report: {result.report}")
    if weights.exists():
        show_line(f"next: {command('evaluate', weights)}")
        show_line(f"      {command('predict', weights, result.example or 'IMAGE')}")
