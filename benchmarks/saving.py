"""Time the saving of all that a resume needs, as a share of the time between two saves, and reading it again.

uv run python benchmarks/saving.py [MODEL ...]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import cyclopts
import torch
from side_by_side import publish
from timm.utils.model_ema import ModelEmaV3

from vitrail.config.training_sections import OutputSection
from vitrail.distributed.processes import processes
from vitrail.models.registry import create_model
from vitrail.training.optim.nonfinite import Guard
from vitrail.training.run.state import SUMS, TrainState, list_states, load_last_state, save_state


def main(*names: str, rounds: int = 5, folder: Path | None = None) -> None:
    """Measure on the disk of `folder`, and write a page beside this file."""
    cadence_s = 60 * OutputSection().save_every_minutes
    table = ["| model | file, MB | save, s | share of the time | load, s |", "|-|-:|-:|-:|-:|"]
    for name in names or ("tnt_s_patch16_224", "tnt_b_patch16_224", "twins_svt_large"):
        model = create_model(name)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        sums = torch.zeros(SUMS, dtype=torch.float64)
        state = TrainState(model, optimizer, ModelEmaV3(model), None, sums, Guard(torch.device("cpu")))
        saves, loads = [], []
        with processes("float32", "cpu") as accelerator, tempfile.TemporaryDirectory(dir=folder) as place:
            for number in range(rounds):
                started = time.perf_counter()
                save_state(Path(place), state.to_dict(accelerator), number, keep=2)
                saves.append(time.perf_counter() - started)
                started = time.perf_counter()
                load_last_state(Path(place), print)
                loads.append(time.perf_counter() - started)
            size = list_states(Path(place))[0].stat().st_size / 1e6
        save = statistics.median(saves)
        table.append(
            f"| {name} | {size:,.0f} | {save:.2f} | {100 * save / cadence_s:.2f} % | {statistics.median(loads):.2f} |"
        )
    notes = [
        f"weights, average and AdamW's moments, float32; saved every {cadence_s:.0f} s by default; medians of {rounds}",
        "serialising, hashing, writing and flushing to the disk; reading back with the check of the hash",
    ]
    publish("saving", "Saving a run", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
