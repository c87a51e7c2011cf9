"""What 8 bits cost and bring: accuracy, size and latency of trained weights in each format.

    uv run vitrail train digits
    uv run python benchmarks/int8.py runs/digits/best.safetensors [--max-drop 1]

Labelled images are those the weights were validated with; `vitrail quantize` measures all of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cyclopts
from side_by_side import publish

from vitrail.deploy.quantize import SUFFIXES, quantize


def main(*checkpoints: Path, max_drop: float = 1.0) -> None:
    """Print the table, and write a page beside this file."""
    lines = ["| file | run by | top-1, % | layers in float | MiB | batch 1, ms | batch 8, ms |", "|-|-|-:|-:|-:|-:|-:|"]
    notes = []
    for checkpoint in checkpoints:
        for format, suffix in SUFFIXES.items():
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder, checkpoint.stem + suffix)
                done = quantize(checkpoint, format, output=output, max_drop=max_drop, rounds=10)
            tried = ", ".join(f"{trial.drop:.2f} with {len(trial.kept)} in float" for trial in done.trials)
            worst = ", ".join(f"{name} {100 * moved:.1f} %" for name, moved in list(done.sensitivities.items())[:3])
            notes.append(
                f"{checkpoint}, {format}: {done.images:,} labelled images, {done.calibrated_on}; points lost: {tried}; "
                f"logits move most by {worst}"
            )
            for speed in done.speeds:
                kept = f"{len(done.trials[-1].kept)} of {done.layers}" if speed is done.speeds[-1] else ""
                lines.append(
                    f"| {speed.what} | {speed.about} | {speed.measure:.2f} | {kept} | {speed.bytes / 2**20:.1f} | "
                    f"{speed.ms[1]:.1f} | {speed.ms[8]:.1f} |"
                )
    publish("int8", "8 bits", notes, lines)


if __name__ == "__main__":
    cyclopts.run(main)
